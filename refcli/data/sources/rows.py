"""Rows of untrusted lists and JSON lines, one by one: a row that cannot be used is reported, the others are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from refcli.data.reading.json_files import convert, parse_json, read_json
from refcli.data.reading.streams import foreign_encoding, invalid_utf8, read_byte_lines, text_start
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, WholeFileError, excerpt
from refcli.data.sources.record import Problems
from refcli.errors import DataError

BROKEN_ROW = "broken_row"
BROKEN_LINE = "broken_line"
UNREADABLE_VALUE = "unreadable_value"
UNREADABLE_BOX = "unreadable_box"
NUMBERS_OF_A_BOX = 4
LARGEST_NUMBER = 2**53
"""Largest id or size; a float cannot hold larger ones exactly, and no data set has them."""
MAX_SIDE = 2**31 - 1
MAX_LINE_BYTES = 16 << 20
"""Maximum bytes of one line; its records may take many times that in memory."""
_MAX_DIGITS = 18
_SHOWN_LETTERS = 60
_LIST = re.compile(rb"\[\s*\{")
_LISTS_BY_NAME = re.compile(rb'\{\s*"[^"\\]*"\s*:\s*\[\s*\{')
_INTEGRAL = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")

Id = int | str
"""An id in comparable form: a number where possible, so that "000000000009", 9 and 9.0 are the same."""
T = TypeVar("T")
Row = TypeVar("Row", bound=msgspec.Struct)


class Rejections:
    """The rows of one file that cannot be used; if no other row can be used, the first explains the refusal."""

    def __init__(self, problems: Problems, kind: str = BROKEN_ROW) -> None:
        self._problems = problems
        self._kind = kind
        self.first: DataError | None = None

    def add(self, error: DataError, where: str) -> None:
        """Report a row.

        Raises:
            WholeFileError: the error is one, and therefore concerns all rows.
        """
        if isinstance(error, WholeFileError):
            raise error
        if self.first is None:
            self.first = error
            self.first.where = self.first.where or where
        kind = error.kind if isinstance(error, MeaningError) else self._kind
        self._problems.add(kind, where, error.message + (f" ({error.hint})" if error.hint else ""))

    def raise_first(self) -> None:
        """Refuse the file; call this if none of its rows can be used.

        Raises:
            DataError: at least one row was rejected.
        """
        if self.first is not None:
            raise self.first


def read_json_lines(path: Path, parse: Callable[[bytes, int, str], T], problems: Problems) -> Iterator[T]:
    """Yield the result of `parse` for each line that is not blank.

    Args:
        path: plain or gzip.
        parse: called with the line, its 1-based number and its place for messages; raises DataError for a line that
            cannot be used.
        problems: collects each such line as `broken_line`, including lines that are not UTF-8.

    Raises:
        DataError: the file is missing, damaged or empty, or no line can be used.
    """
    num_good = 0
    rejected = Rejections(problems, BROKEN_LINE)
    for number, line in read_byte_lines(path, max_line_bytes=MAX_LINE_BYTES):
        where = f"{path.name}: line {number}"
        try:
            if number == 1 and (encoding := foreign_encoding(line)):
                raise WholeFileError(f"the file is {encoding}", where=str(path), hint="save it as UTF-8")
            byte = invalid_utf8(line)
            if byte is not None:
                raise DataError(
                    f"byte {byte + 1} of the line, 0x{line[byte]:02X}, is not UTF-8",
                    where=where,
                    hint="save it as UTF-8",
                )
            row = parse(line, number, where)
        except DataError as error:
            rejected.add(error, where)
            continue
        num_good += 1
        yield row
    if num_good:
        return
    first_error = rejected.first
    if first_error is None:
        raise DataError("the file is empty", where=str(path), hint="it should hold one JSON object per line")
    raise DataError(
        f"no line can be used; the first: {first_error.message}",
        where=f"{path}: {first_error.where}",
        hint=first_error.hint or "it should hold one JSON object per line",
    )


def read_json_rows(
    path: Path, parse: Callable[[bytes, int, str], T], problems: Problems, *, member: str | None = None
) -> Iterator[T]:
    """As `read_json_lines`, also for a file that is one JSON list, whose unusable records are each a `broken_row`.

    Args:
        path, parse, problems: as for `read_json_lines`.
        member: if the file may also be a JSON object of such lists, the name of the list that is read.

    Raises:
        DataError: as `read_json_lines`, or there is no list of that name.
    """
    start = text_start(path)
    if start.startswith(b"["):
        rows = read_json(path, list[msgspec.Raw])
    elif member is not None and _LISTS_BY_NAME.match(start):
        lists = read_json(path, dict[str, list[msgspec.Raw]])
        if member not in lists:
            raise DataError(f"there is no list {member!r}", where=str(path), hint=f"it has: {', '.join(lists)}")
        rows = lists[member]
    else:
        yield from read_json_lines(path, parse, problems)
        return
    rejected = Rejections(problems)
    num_good = 0
    for number, row in enumerate(rows, 1):
        where = f"{path.name}: record {number}"
        try:
            parsed = parse(bytes(row), number, where)
        except DataError as error:
            rejected.add(error, where)
            continue
        num_good += 1
        yield parsed
    if not num_good:
        rejected.raise_first()
        raise DataError("the list is empty", where=str(path), hint="it should hold one JSON object per record")


def first_record_has(path: Path, *keys: bytes) -> bool:
    """Whether a file starts as JSON lines, as a list of objects or as an object of such lists, with all these keys, at
    any depth: of lines, in one line, otherwise in the first 64 KiB."""
    start = text_start(path)
    if _LIST.match(start) or _LISTS_BY_NAME.match(start):
        return all(pattern.search(start) for pattern in _patterns(keys))
    return some_line_has(path, *keys)


def some_line_has(path: Path, *keys: bytes) -> bool:
    """Whether a file starts with JSON lines one of which, in the first 64 KiB, has all these keys, at any depth."""
    start = text_start(path)
    if not start.startswith(b"{"):
        return False
    *whole, last = start.split(b"\n")
    lines = [
        line for line in (*(line for line in whole if line.rstrip().endswith(b"}")), last) if line.startswith(b"{")
    ]
    patterns = _patterns(keys)
    return any(all(pattern.search(line) for pattern in patterns) for line in lines)


def _patterns(keys: Sequence[bytes]) -> list[re.Pattern[bytes]]:
    return [re.compile(rb'"' + re.escape(key) + rb'"\s*:') for key in keys]


def decode_row(
    text: bytes | msgspec.Raw,
    kind: type[Row],
    *,
    where: str,
    problems: Problems,
    needed: Collection[str],
    keys: tuple[KnownKeys, KeyLog] | None = None,
) -> Row:
    """Decode one record of a JSON list.

    Args:
        text: a JSON object.
        kind: its expected shape.
        where: file and record, for messages.
        problems: collects values of another shape that the record can do without.
        needed: fields that may be absent or null but must be readable otherwise: without them the record would mean
            something else.
        keys: the known keys to compare the record's keys with, and the log of unknown keys.

    Raises:
        DataError: `text` is not an object, or a field that is needed is missing or has another shape.
    """
    values = parse_json(text, dict[str, msgspec.Raw], where=where)
    if keys is not None:
        keys[1].check(keys[0], values, where)
    try:
        return msgspec.json.decode(text, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_usable_fields(values, kind, where=where, problems=problems, needed=needed)


def convert_row(
    value: object,
    kind: type[Row],
    *,
    where: str,
    problems: Problems,
    needed: Collection[str],
    keys: tuple[KnownKeys, KeyLog] | None = None,
) -> Row:
    """As `decode_row`, from plain Python data."""
    if not isinstance(value, dict):
        raise DataError(f"this is not a record but {_shown(value)}", where=where)
    if keys is not None:
        keys[1].check(keys[0], value, where)
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _read_usable_fields(value, kind, where=where, problems=problems, needed=needed)


def _read_usable_fields(
    values: Mapping[str, object], kind: type[Row], *, where: str, problems: Problems, needed: Collection[str]
) -> Row:
    """Read a record field by field: fields of another shape that are not needed keep their default."""
    kept: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if name not in values:
            if field.required:
                raise DataError(f"there is no {name}", where=where)
            continue
        value = values[name]
        try:
            kept[field.name] = (
                parse_json(value, field.type, where=where)
                if isinstance(value, msgspec.Raw)
                else convert(value, field.type, where=where)
            )
        except DataError as error:
            if field.required or (name in needed and not _is_null(value)):
                reason = error.message.removeprefix("the data has an unexpected shape: ")
                raise DataError(f"{name} is {_shown(value)}: {reason}", where=where) from error
            if not _is_null(value):
                is_invalid = isinstance(value, msgspec.Raw) and invalid_utf8(bytes(value)) is not None
                problems.add(
                    UNREADABLE_VALUE, where, f"{name} is {_shown(value)}" + (" (not UTF-8)" if is_invalid else "")
                )
    return kind(**kept)


def comparable_id(value: int | float | str) -> Id:
    """An id in comparable form, see `Id`."""
    if isinstance(value, str) and _INTEGRAL.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value


def whole_number(value: object) -> int | None:
    """An id as a whole number, not negative; None if it is not one or is larger than any id of a data set."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS):
            return None
        value = int(value)
    return value if 0 <= value <= LARGEST_NUMBER else None


def valid_side(value: int | None) -> int | None:
    """A width or height; None for impossible ones, such as -1 for unknown."""
    return value if value is not None and 0 < value <= MAX_SIDE else None


def are_fractions(boxes: Sequence[Sequence[float]]) -> bool:
    """Whether boxes are given in fractions of the image rather than in pixels: all numbers lie in 0..1."""
    numbers = [number for box in boxes for number in box]
    return bool(numbers) and all(0 <= number <= 1 for number in numbers)


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, msgspec.Raw) and bytes(value) == b"null")


def _shown(value: object) -> str:
    return excerpt(bytes(value) if isinstance(value, msgspec.Raw) else value, _SHOWN_LETTERS)
