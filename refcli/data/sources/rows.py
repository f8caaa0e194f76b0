"""Records of a list, one by one: what cannot be used is listed, and the rest goes on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec

from refcli.data.reading.json_files import convert, parse_json
from refcli.data.reading.streams import invalid_utf8
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, WholeFileError, excerpt
from refcli.data.sources.record import Problems
from refcli.errors import DataError

BROKEN_ROW = "broken_row"
UNREADABLE_VALUE = "unreadable_value"
UNREADABLE_BOX = "unreadable_box"
LARGEST_NUMBER = 2**53
"""Ids and sizes beyond it are not those of any data set; a float cannot hold them."""
MAX_SIDE = 2**31 - 1
_MAX_DIGITS = 18
_SHOWN_LETTERS = 60
_INTEGRAL = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")

Id = int | str
"""An id as it is compared: a number where it can be one, so that "000000000009", 9 and 9.0 are the same."""
Row = TypeVar("Row", bound=msgspec.Struct)


class Rejections:
    """The rows of one file that cannot be used; if no other row can be, the first says why the file is refused."""

    def __init__(self, problems: Problems, kind: str = BROKEN_ROW) -> None:
        self._problems = problems
        self._kind = kind
        self.first: DataError | None = None

    def add(self, error: DataError, where: str) -> None:
        """List a row.

        Raises:
            WholeFileError: the error is one, and so about all rows.
        """
        if isinstance(error, WholeFileError):
            raise error
        if self.first is None:
            self.first = error
            self.first.where = self.first.where or where
        kind = error.kind if isinstance(error, MeaningError) else self._kind
        self._problems.add(kind, where, error.message + (f" ({error.hint})" if error.hint else ""))

    def refuse_if_any(self) -> None:
        """To be called where no row of the file could be used.

        Raises:
            DataError: there is a rejected row.
        """
        if self.first is not None:
            raise self.first


def decode_row(
    text: bytes | msgspec.Raw,
    kind: type[Row],
    *,
    where: str,
    problems: Problems,
    needed: Collection[str],
    keys: tuple[KnownKeys, KeyLog] | None = None,
) -> Row:
    """One record of a JSON list.

    Args:
        text: a JSON object.
        kind: its shape.
        where: file and record, for messages.
        problems: collects values that have another shape and that the record can do without.
        needed: fields without which, if they are there and not null, the record means nothing or something else.
        keys: what to compare the record's keys with, and where to note unknown ones.

    Raises:
        DataError: it is no object, or a field that is needed is missing or has another shape.
    """
    values = parse_json(text, dict[str, msgspec.Raw], where=where)
    if keys is not None:
        keys[1].check(keys[0], values, where)
    try:
        return msgspec.json.decode(text, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _salvaged(values, kind, where=where, problems=problems, needed=needed)


def convert_row(
    value: object,
    kind: type[Row],
    *,
    where: str,
    problems: Problems,
    needed: Collection[str],
    keys: tuple[KnownKeys, KeyLog] | None = None,
) -> Row:
    """As `decode_row`, of plain Python data."""
    if not isinstance(value, dict):
        raise DataError(f"this is not a record but {_shown(value)}", where=where)
    if keys is not None:
        keys[1].check(keys[0], value, where)
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _salvaged(value, kind, where=where, problems=problems, needed=needed)


def _salvaged(
    values: Mapping[str, object], kind: type[Row], *, where: str, problems: Problems, needed: Collection[str]
) -> Row:
    """What can be read of a record: fields of another shape that are not needed have their default."""
    kept: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if name not in values:
            if field.required:
                raise DataError(f"there is no {name}", where=where)
            continue
        value = values[name]
        try:
            kept[name] = (
                parse_json(value, field.type, where=where)
                if isinstance(value, msgspec.Raw)
                else convert(value, field.type, where=where)
            )
        except DataError as error:
            if field.required or (name in needed and not _is_null(value)):
                reason = error.message.removeprefix("the data has an unexpected shape: ")
                raise DataError(f"{name} is {_shown(value)}: {reason}", where=where) from error
            if not _is_null(value):
                fault = (
                    " (not UTF-8)" if isinstance(value, msgspec.Raw) and invalid_utf8(bytes(value)) is not None else ""
                )
                problems.add(UNREADABLE_VALUE, where, f"{name} is {_shown(value)}{fault}")
    return kind(**kept)


def identity(value: int | float | str) -> Id:
    """An id as it is compared."""
    if isinstance(value, str) and _INTEGRAL.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value


def number_of(value: object) -> int | None:
    """The whole number, not negative, that an id is; None for one that is none, or beyond any that a data set has."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS):
            return None
        value = int(value)
    return value if 0 <= value <= LARGEST_NUMBER else None


def side_of(value: int | None) -> int | None:
    """A width or height; None for one that no image has, such as -1 for unknown."""
    return value if value is not None and 0 < value <= MAX_SIDE else None


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, msgspec.Raw) and bytes(value) == b"null")


def _shown(value: object) -> str:
    return excerpt(bytes(value) if isinstance(value, msgspec.Raw) else value, _SHOWN_LETTERS)
