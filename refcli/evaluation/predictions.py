"""Score a prediction file of any system, as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from refcli.answers.formats import AnswerNotation
from refcli.answers.keys import whole_key
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.data.store.read import StoreSplit
from refcli.errors import DataError
from refcli.evaluation.answer_lines import (
    BYTES_AT_ONCE,
    REFCLI_LINES,
    AnswerLines,
    AnyLine,
    RejectionLog,
    in_batches,
)
from refcli.evaluation.box_units import BoxUnits
from refcli.evaluation.evaluate import score
from refcli.evaluation.run import WRONG_SIZE, Run, Scoring, SplitScores
from refcli.evaluation.sample_score import SampleScore, score_unanswered


class RowIndex:
    """Rows by key, in sixteen bytes per row: hashes are kept, not keys.

    Args:
        hashes: Python's hash of the key of every row.
    """

    @classmethod
    def of(cls, split: StoreSplit, key_of: Callable[[str], str] = whole_key) -> RowIndex:
        """The rows of the examples of a split by their keys, which `key_of` makes of their ids."""
        parts = [_hashes(map(key_of, table["id"].to_pylist()), len(table)) for table in split.tables(["id"])]
        return cls(np.concatenate(parts) if parts else np.empty(0, np.int64))

    def __init__(self, hashes: np.ndarray) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def candidates(self, key: str) -> list[int]:
        """Rows whose key has the same hash: that of the key, and very rarely another."""
        first, last = np.searchsorted(self._sorted, hash(key)), np.searchsorted(self._sorted, hash(key), "right")
        rows: list[int] = self._order[first:last].tolist()
        return rows


def _hashes(keys: Iterable[str], count: int) -> np.ndarray:
    return np.fromiter(map(hash, keys), np.int64, count)


class SplitJoin:
    """Joins lines to the samples of one split.

    Args:
        split: the samples.
        lines: the file.
    """

    def __init__(self, split: StoreSplit, lines: AnswerLines) -> None:
        self._split, self._key_of, self._rejected = split, lines.key_of, lines.rejected
        self._index = RowIndex.of(split, lines.key_of)
        self.is_named = np.zeros(len(split), dtype=np.bool_)
        """Which samples have a line."""

    def add(self, batch: Sequence[AnyLine], known: dict[int, Example]) -> Iterator[tuple[int, Example, AnyLine]]:
        """Yield (row, sample, line) of each line that is the first about its sample, in the order of the split.

        Args:
            batch: the lines.
            known: is updated: number of a line -> its sample.
        """
        named = [(row, line) for line in batch for row in self._index.candidates(line.key)]
        for row, line in sorted(named, key=lambda pair: (pair[0], pair[1].number)):
            example = self._split[row]
            if self._key_of(example.id) != line.key:
                continue
            known[line.number] = example
            if self.is_named[row]:
                self._rejected.add("duplicate id", line.number, example.id)
                continue
            self.is_named[row] = True
            yield row, example, line


class JoinedLines:
    """The lines of a file in batches that are joined to every split; counts unknown ids and the units of boxes.

    Args:
        lines: the file.
        splits: the splits.
        bytes_at_once: size of the lines in memory at a time.
    """

    def __init__(self, lines: AnswerLines, splits: Collection[StoreSplit], bytes_at_once: int = BYTES_AT_ONCE) -> None:
        self._lines, self._bytes_at_once = lines, bytes_at_once
        notation = lines.notation
        self._units = BoxUnits(notation.coordinates, can_declare=notation.format.has_spaces)
        self._a_key = next((lines.key_of(split[0].id) for split in splits if len(split)), "none")
        self._num_known = 0

    def __iter__(self) -> Iterator[tuple[list[AnyLine], dict[int, Example]]]:
        """Yield each batch, and a dictionary that the splits fill: number of a line -> its sample.

        Raises:
            DataError: the file cannot be read.
        """
        for batch in in_batches(self._lines, self._bytes_at_once):
            known: dict[int, Example] = {}
            yield batch, known
            self._num_known += len(known)
            for line in batch:
                line.count_units(self._units, known.get(line.number))
                if line.number not in known:
                    message = f"{line.key} (the store has ids such as {self._a_key})"
                    self._lines.rejected.add("unknown id", line.number, message)

    def finish(self) -> list[str]:
        """What a user should know about the answers as a whole.

        Raises:
            DataError: the file lists boxes, and none of a sample of the splits: that is not "no target".
        """
        rejected = self._lines.rejected.listed()
        if self._lines.notation.format.lists_boxes and rejected and not self._num_known:
            first = next(lines.first[0] for lines in rejected.values())
            raise DataError(
                "no entry of the file is about a sample of the split",
                where=first,
                hint="prepare the data from the annotation file that the ids in the results refer to",
            )
        return [*self._units.warnings(), *self._lines.notes]


def unlisted(example: Example, notation: AnswerNotation) -> Answer:
    """The answer "no target" to a sample without an entry in a file that lists boxes."""
    return Answer.to(example, (), weights=notation.name)


def unlisted_notes(count: int) -> list[str]:
    """The note about such samples, if there are any."""
    return [f'{count:,} samples have no entry, which is the answer "no target" in this format'] if count else []


class SplitScoring:
    """Scores the lines that name samples of one split, a batch at a time.

    Args:
        split: the truth.
        rows: the part of it that is scored here.
        scoring: conventions and thresholds.
        lines: the file.
        on_sample: called with (samples done, samples of this part) after each.
    """

    def __init__(
        self,
        split: StoreSplit,
        rows: range,
        scoring: Scoring,
        lines: AnswerLines,
        on_sample: Callable[[int, int], None] | None,
    ) -> None:
        self._split, self._rows, self._scoring = split, rows, scoring
        self._lines, self._on_sample = lines, on_sample
        self._join = SplitJoin(split, lines)
        self._table = scoring.table()
        self._num_done = 0

    def num_unnamed(self, size: int) -> int:
        """Samples without a line, of the first ones of the split."""
        return int((~self._join.is_named[:size]).sum())

    def add(self, batch: Sequence[AnyLine], known: dict[int, Example]) -> None:
        """Score a batch; `known` is updated: number of a line -> its sample in this split."""
        for row, example, line in self._join.add(batch, known):
            if row in self._rows:
                self._add(row, self._score(example, line))

    def finish(self) -> pa.Table:
        """All samples of the part; those without a line are unanswered, or "no target" in files that list boxes."""
        notation = self._lines.notation
        for row in self._rows:
            if not self._join.is_named[row]:
                example = self._split[row]
                if notation.format.lists_boxes:
                    self._add(row, score(example, unlisted(example, notation), self._scoring))
                else:
                    self._add(row, self._unanswered(example, "no line of the file answers it"))
        return self._table.finish()

    def _score(self, example: Example, line: AnyLine) -> SampleScore:
        try:
            return score(example, line.answer_to(example), self._scoring)
        except DataError as error:
            self._lines.rejected.add(WRONG_SIZE, line.number, f"{example.id}: {error.message}")
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
    notation: AnswerNotation = REFCLI_LINES,
    rows: Mapping[str, range] | None = None,
    sizes: Mapping[str, int] | None = None,
    scoring: Scoring | None = None,
    on_sample: Callable[[str, int, int], None] | None = None,
    bytes_at_once: int = BYTES_AT_ONCE,
) -> Run:
    """Score the lines of a file against the samples with the same id, in any order.

    A sample without a valid line is missing; `scoring.missing` decides what it counts as. Rejected lines are counted
    and the first of each kind quoted: `not a prediction` (not JSON, another schema, a malformed field, damaged run
    lengths), `unknown id`, `duplicate id` (the first line counts) and `wrong size` (of the image or a mask; the sample
    is then unanswered). A box with a number that is not finite is a miss, not an error. Boxes that all seem to be in
    other units than the declared ones give a warning. In formats that list boxes, such as COCO results, a sample
    without an entry is answered "no target".

    Memory does not grow with masks or lines: a bounded number of both is held, and some hundred bytes per sample.

    Args:
        path: plain or gzipped.
        splits: the splits by `dataset:split`; a line answers its id in each of them.
        notation: the declared notation of the file.
        rows: the part of each split that is scored here; None: everything.
        sizes: samples of all parts of each split together; None: those of `rows`.
        scoring: conventions and thresholds; None: the defaults.
        on_sample: called with (split, samples done, samples of this part) after each.
        bytes_at_once: size of the lines in memory at a time.

    Raises:
        DataError: the file cannot be read, or it lists boxes, and none of a sample of the splits.
    """
    scoring = scoring or Scoring()
    chosen = rows or {name: range(len(split)) for name, split in splits.items()}
    rejected = RejectionLog(path.name)
    start = time.perf_counter()
    lines = AnswerLines(path, rejected, notation)
    parts = {
        name: SplitScoring(split, chosen[name], scoring, lines, partial(on_sample, name) if on_sample else None)
        for name, split in splits.items()
    }
    joined = JoinedLines(lines, splits.values(), bytes_at_once)
    for batch, known in joined:
        for part in parts.values():
            part.add(batch, known)
    notes = joined.finish()
    if notation.format.lists_boxes:
        scored = sizes or {name: len(rows) for name, rows in chosen.items()}
        notes += unlisted_notes(sum(part.num_unnamed(scored[name]) for name, part in parts.items()))
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
        warnings=tuple(f"{path.name}: {note}" for note in notes),
        notation=str(notation),
    )
