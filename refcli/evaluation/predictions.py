"""Score a prediction file (`refcli.prediction/1`) of any system, as a stream."""

from __future__ import annotations

import json
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from refcli.answers.jsonl import answer_from_json
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.data.reading.streams import foreign_encoding, read_byte_lines
from refcli.data.store.read import StoreSplit
from refcli.errors import DataError, RefcliError
from refcli.evaluation.evaluate import score
from refcli.evaluation.run import MOST_LISTED, WRONG_SIZE, RejectedLines, Run, Scoring, SplitScores
from refcli.evaluation.sample_score import SampleScore, score_unanswered
from refcli.geometry.boxes import box_area, is_finite
from refcli.geometry.masks import check_run_lengths

LINES_AT_ONCE = 2048
BYTES_AT_ONCE = 4 << 20
"""Lines in memory at a time; they are scored in the order of the store, so that each row group is read once."""
MOST_LINE_BYTES = 16 << 20
MOST_TARGETS = 10_000
"""Limits of a line."""
LONGEST_QUOTED = 500
"""Maximum length of a quoted reason, in characters."""


class Line(NamedTuple):
    """A valid line of the file."""

    number: int
    answer: Answer
    num_bytes: int


class RejectionLog:
    """Collects rejected lines in any order: all are counted, the first of each kind quoted."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[tuple[int, str]]] = {}

    def add(self, kind: str, number: int, message: str) -> None:
        """Add a line of a kind."""
        self._counts[kind] += 1
        quoted = self._first.setdefault(kind, [])
        if len(message) > LONGEST_QUOTED:
            message = message[:LONGEST_QUOTED] + "..."
        if len(quoted) < MOST_LISTED or number < quoted[-1][0]:
            insort(quoted, (number, f"{self._file}:{number}: {message}"))
            del quoted[MOST_LISTED:]

    def listed(self) -> dict[str, RejectedLines]:
        """The rejected lines by kind."""
        return {
            kind: RejectedLines(count, tuple(text for _, text in self._first[kind]))
            for kind, count in self._counts.items()
        }


class RowIndex:
    """Rows by id, in sixteen bytes per row: hashes are kept, not ids.

    Args:
        hashes: Python's hash of the id of every row.
    """

    @classmethod
    def of(cls, split: StoreSplit) -> RowIndex:
        """The rows of the examples of a split."""
        parts = [_hashes(table["id"].to_pylist()) for table in split.tables(["id"])]
        return cls(np.concatenate(parts) if parts else np.empty(0, np.int64))

    def __init__(self, hashes: np.ndarray) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def candidates(self, ident: str) -> list[int]:
        """Rows whose id has the same hash: that of the id, and very rarely another."""
        first, last = np.searchsorted(self._sorted, hash(ident)), np.searchsorted(self._sorted, hash(ident), "right")
        rows: list[int] = self._order[first:last].tolist()
        return rows


def _hashes(ids: list[str]) -> np.ndarray:
    return np.fromiter(map(hash, ids), np.int64, len(ids))


class SplitScoring:
    """Scores the lines that name samples of one split, a batch at a time.

    Args:
        split: the truth.
        rows: the part of it that is scored here.
        scoring: conventions and thresholds.
        rejected: collects rejected lines.
        on_sample: called with (samples done, samples of this part) after each.
    """

    def __init__(
        self,
        split: StoreSplit,
        rows: range,
        scoring: Scoring,
        rejected: RejectionLog,
        on_sample: Callable[[int, int], None] | None,
    ) -> None:
        self._split, self._rows, self._scoring = split, rows, scoring
        self._rejected, self._on_sample = rejected, on_sample
        self._index = RowIndex.of(split)
        self._table = scoring.table()
        self._is_named = np.zeros(len(split), dtype=np.bool_)
        self._num_done = 0

    def add(self, batch: Sequence[Line]) -> set[int]:
        """Score a batch; returns the numbers of the lines whose id is in this split."""
        known: set[int] = set()
        named = [(row, line) for line in batch for row in self._index.candidates(line.answer.id)]
        for row, line in sorted(named, key=lambda pair: (pair[0], pair[1].number)):
            example = self._split[row]
            if example.id != line.answer.id:
                continue
            known.add(line.number)
            if self._is_named[row]:
                self._rejected.add("duplicate id", line.number, example.id)
                continue
            self._is_named[row] = True
            if row in self._rows:
                self._add(row, self._score(example, line))
        return known

    def finish(self) -> pa.Table:
        """All samples of the part; those without a line are unanswered."""
        for row in self._rows:
            if not self._is_named[row]:
                self._add(row, self._unanswered(self._split[row], "no line of the file answers it"))
        return self._table.finish()

    def _score(self, example: Example, line: Line) -> SampleScore:
        try:
            return score(example, line.answer, self._scoring)
        except DataError as error:
            self._rejected.add(WRONG_SIZE, line.number, f"{example.id}: {error.message}")
            return self._unanswered(example, error.message)

    def _unanswered(self, example: Example, error: str) -> SampleScore:
        return score_unanswered(example, error, counts=self._scoring.missing == "wrong", frames=self._scoring.frames)

    def _add(self, row: int, sample: SampleScore) -> None:
        self._table.add(row, sample)
        self._num_done += 1
        if self._on_sample is not None:
            self._on_sample(self._num_done, len(self._rows))


def score_file(
    path: Path,
    splits: Mapping[str, StoreSplit],
    *,
    rows: Mapping[str, range] | None = None,
    sizes: Mapping[str, int] | None = None,
    scoring: Scoring | None = None,
    on_sample: Callable[[str, int, int], None] | None = None,
    bytes_at_once: int = BYTES_AT_ONCE,
) -> Run:
    """Score the lines of a file against the samples with the same `id`, in any order.

    A sample without a valid line is missing; `scoring.missing` decides what it counts as. Rejected lines are counted
    and the first of each kind quoted: `not a prediction` (not JSON, another schema, a malformed field, damaged run
    lengths), `unknown id`, `duplicate id` (the first line counts) and `wrong size` (of the image or a mask; the sample
    is then unanswered). A box with a number that is not finite is a miss, not an error. Boxes that all seem to be in
    other units than pixels give a warning.

    Memory does not grow with masks or lines: a bounded number of both is held, and some hundred bytes per sample.

    Args:
        path: JSON lines, plain or gzipped.
        splits: the splits by `dataset:split`; a line answers its id in each of them.
        rows: the part of each split that is scored here; None: everything.
        sizes: samples of all parts of each split together; None: those of `rows`.
        scoring: conventions and thresholds; None: the defaults.
        on_sample: called with (split, samples done, samples of this part) after each.
        bytes_at_once: size of the lines in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    scoring = scoring or Scoring()
    chosen = rows or {name: range(len(split)) for name, split in splits.items()}
    rejected = RejectionLog(path.name)
    start = time.perf_counter()
    parts = {
        name: SplitScoring(split, chosen[name], scoring, rejected, partial(on_sample, name) if on_sample else None)
        for name, split in splits.items()
    }
    units = BoxUnits()
    an_id = next((split[0].id for split in splits.values() if len(split)), "none")
    for batch in in_batches(read_lines(path, rejected), bytes_at_once):
        known = set().union(*(part.add(batch) for part in parts.values()))
        for line in batch:
            units.add(line.answer)
            if line.number not in known:
                rejected.add("unknown id", line.number, f"{line.answer.id} (the store has ids such as {an_id})")
    tables = {name: part.finish() for name, part in parts.items()}
    seconds = time.perf_counter() - start
    listed = rejected.listed()
    return Run(
        weights=str(path),
        precision=None,
        scoring=scoring,
        splits=tuple(
            SplitScores(
                name=name,
                table=table,
                size=sizes[name] if sizes else len(table),
                total=len(splits[name]),
                seconds=seconds * len(table) / max(sum(map(len, tables.values())), 1),
            )
            for name, table in tables.items()
        ),
        problems={path.name: listed} if listed else {},
        warnings=tuple(f"{path.name}: {warning}" for warning in units.warnings()),
    )


def read_lines(path: Path, rejected: RejectionLog) -> Iterator[Line]:
    """The valid lines of a prediction file; the others are rejected.

    Raises:
        DataError: the file cannot be read, or is cut off within a gzip block.
    """
    try:
        for number, line in read_byte_lines(path, max_line_bytes=MOST_LINE_BYTES):
            if number == 1 and (encoding := foreign_encoding(line)):
                raise DataError(f"it is {encoding}", hint="write it in UTF-8")
            try:
                answer = _answer_in(line)
            except RefcliError as error:
                rejected.add("not a prediction", number, f"{error.where or ''} {error.message}".strip())
            except (ValueError, RecursionError) as error:
                rejected.add("not a prediction", number, f"not JSON: {error}")
            else:
                yield Line(number, answer, len(line))
    except (OSError, DataError) as error:
        raise DataError(
            f"the prediction file cannot be read: {error.message if isinstance(error, DataError) else error}",
            where=str(path),
            hint=error.hint if isinstance(error, DataError) else None,
        ) from error


def _answer_in(line: bytes) -> Answer:
    """The answer in a line.

    Raises:
        DataError: there is none.
        ValueError: the line is not JSON.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise DataError("the line is not a JSON object")
    for key in ("targets", "candidates"):
        if isinstance(record.get(key), list) and len(record[key]) > MOST_TARGETS:
            raise DataError(f"more than {MOST_TARGETS:,} {key}")
    answer = answer_from_json(record)
    for target in (*answer.targets, *(answer.candidates or ())):
        for mask in (target.mask, target.frame.mask if target.frame else None):
            if mask is not None:
                check_run_lengths(mask)
    return answer


def in_batches(lines: Iterable[Line], bytes_at_once: int = BYTES_AT_ONCE) -> Iterator[list[Line]]:
    """Lists of at most `LINES_AT_ONCE` lines, each complete once it holds `bytes_at_once`."""
    batch: list[Line] = []
    num_bytes = 0
    for line in lines:
        batch.append(line)
        num_bytes += line.num_bytes
        if len(batch) == LINES_AT_ONCE or num_bytes >= bytes_at_once:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


PER_MILLE = 1000
"""The sides of an image in the coordinates of some vision-language models."""
NOTABLE_SHARE = 0.1
"""A larger share of boxes outside their images, of boxes that all lie in 0..1000, suggests other units."""


class BoxUnits:
    """Counts boxes by the range of their coordinates."""

    def __init__(self) -> None:
        self._num_boxes = self._num_fractions = self._num_per_mille = self._num_beyond = 0

    def add(self, answer: Answer) -> None:
        """Count the boxes of a system; the tight boxes of masks are in pixels, and empty boxes fit any unit."""
        for target in answer.proposals:
            box = target.box_xyxy
            if target.box_is_from_mask or not is_finite(box) or not box_area(box):
                continue
            self._num_boxes += 1
            self._num_fractions += min(box) >= 0 and max(box) <= 1
            self._num_per_mille += min(box) >= 0 and max(box) <= PER_MILLE
            if answer.width and answer.height:
                self._num_beyond += box[0] >= answer.width or box[1] >= answer.height

    def warnings(self) -> list[str]:
        """A warning if the boxes seem to be in other units than pixels."""
        if self._num_boxes and self._num_boxes == self._num_fractions:
            return [
                f"all {self._num_boxes} boxes lie within 0..1: they seem to be fractions of the image; write them in "
                "pixels of the original image (x times width, y times height)"
            ]
        if self._num_per_mille == self._num_boxes and self._num_beyond > NOTABLE_SHARE * self._num_boxes:
            return [
                f"all {self._num_boxes} boxes lie within 0..{PER_MILLE}, and {self._num_beyond} of them outside their "
                f"image: they seem to be in thousandths of the image; write them in pixels of the original image"
            ]
        return []
