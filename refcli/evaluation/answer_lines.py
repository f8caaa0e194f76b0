"""The lines of a prediction file of any format, as answers to examples."""

from __future__ import annotations

import json
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from refcli.answers.formats import REFCLI, AnswerNotation
from refcli.answers.jsonl import answer_from_json, as_written
from refcli.answers.keys import KEY_RULES
from refcli.answers.stated import NOT_A_PREDICTION, AnswerReader, AnswerReading, StatedAnswer, answer_of, extent_of
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.data.reading.streams import foreign_encoding, read_byte_lines
from refcli.errors import DataError, RefcliError
from refcli.evaluation.box_units import BoxUnits
from refcli.evaluation.run import MOST_LISTED, RejectedLines
from refcli.exports import imported
from refcli.geometry.masks import check_run_lengths

LINES_AT_ONCE = 2048
BYTES_AT_ONCE = 4 << 20
"""Lines in memory at a time; they are scored in the order of the store, so that each row group is read once."""
MOST_LINE_BYTES = 16 << 20
MOST_TARGETS = 10_000
"""Limits of a line."""
LONGEST_QUOTED = 500
"""Maximum length of a quoted reason, in characters."""
REFCLI_LINES = AnswerNotation()
"""The notation of prediction lines."""


class AnyLine(Protocol):
    """A usable line of a prediction file of any format."""

    @property
    def number(self) -> int:
        """Of the line or entry, from 1."""
        ...

    @property
    def num_bytes(self) -> int:
        """Its size."""
        ...

    @property
    def key(self) -> str:
        """Identifies its example, by the rule of the format."""
        ...

    def answer_to(self, example: Example) -> Answer:
        """The answer to the example of its key.

        Raises:
            DataError: sizes of the line and the example contradict each other, or do not suffice.
        """
        ...

    def count_units(self, units: BoxUnits, example: Example | None) -> None:
        """Count the boxes; the example is None if it is unknown."""
        ...


class Line(NamedTuple):
    """A valid prediction line of refcli."""

    number: int
    answer: Answer
    num_bytes: int

    @property
    def key(self) -> str:
        """The id of the example."""
        return self.answer.id

    def answer_to(self, example: Example) -> Answer:
        """The answer."""
        return self.answer

    def count_units(self, units: BoxUnits, example: Example | None) -> None:
        """Count the boxes."""
        units.add(self.answer)


class StatedLine(NamedTuple):
    """A usable line of another system."""

    stated: StatedAnswer
    notation: AnswerNotation

    @property
    def number(self) -> int:
        """Of the line or entry."""
        return self.stated.number

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.stated.num_bytes

    @property
    def key(self) -> str:
        """As the file has it."""
        return self.stated.key

    def answer_to(self, example: Example) -> Answer:
        """The answer with the precision of prediction lines, so that a file scores as its conversion does."""
        return as_written(answer_of(self.stated, example, self.notation))

    def count_units(self, units: BoxUnits, example: Example | None) -> None:
        """Count the boxes, in the numbers of the file."""
        if example is not None and not any(self.stated.boxes_from_masks or ()):
            units.add_boxes(self.stated.boxes, extent_of(self.stated, example, self.notation))


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


class AnswerLines:
    """The usable lines of a prediction file of any format; the others are rejected.

    Args:
        path: the file.
        rejected: collects the others.
        notation: the declared notation of the file.
    """

    def __init__(self, path: Path, rejected: RejectionLog, notation: AnswerNotation = REFCLI_LINES) -> None:
        self.path, self.rejected, self.notation = path, rejected, notation
        self.notes: tuple[str, ...] = ()
        """What a user should know about the answers as a whole; known after the last line."""

    @property
    def key_of(self) -> Callable[[str], str]:
        """The key of an example from its id."""
        return KEY_RULES["own id" if self.notation.format.has_own_ids else "id"]

    def __iter__(self) -> Iterator[AnyLine]:
        """Read the file.

        Raises:
            DataError: the file cannot be read.
        """
        if self.notation.name == REFCLI:
            yield from read_lines(self.path, self.rejected)
            return
        reading = AnswerReading(self.path, self.notation, self.rejected.add)
        read: AnswerReader = imported(self.notation.format.read)
        try:
            for stated in read(reading):
                yield StatedLine(stated, self.notation)
        except (OSError, DataError) as error:
            raise _unreadable(error, self.path) from error
        self.notes = reading.finish()


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
                rejected.add(NOT_A_PREDICTION, number, f"{error.where or ''} {error.message}".strip())
            except (ValueError, RecursionError) as error:
                rejected.add(NOT_A_PREDICTION, number, f"not JSON: {error}")
            else:
                yield Line(number, answer, len(line))
    except (OSError, DataError) as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError | DataError, path: Path) -> DataError:
    message, hint = (error.message, error.hint) if isinstance(error, DataError) else (error, None)
    return DataError(f"the prediction file cannot be read: {message}", where=str(path), hint=hint)


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
    masks = [answer.mask]
    for target in (*answer.targets, *(answer.candidates or ())):
        masks += [target.mask, target.frame.mask if target.frame else None]
    for mask in masks:
        if mask is not None:
            check_run_lengths(mask)
    return answer


def in_batches(lines: Iterable[AnyLine], bytes_at_once: int = BYTES_AT_ONCE) -> Iterator[list[AnyLine]]:
    """Lists of at most `LINES_AT_ONCE` lines, each complete once it holds `bytes_at_once`."""
    batch: list[AnyLine] = []
    num_bytes = 0
    for line in lines:
        batch.append(line)
        num_bytes += line.num_bytes
        if len(batch) == LINES_AT_ONCE or num_bytes >= bytes_at_once:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
