"""Files with one JSON object per line: a line that cannot be used is listed, and the rest goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from refcli.data.reading.streams import foreign_encoding, invalid_utf8, open_binary, read_byte_lines
from refcli.data.sources.known_keys import WholeFileError
from refcli.data.sources.record import Problems
from refcli.data.sources.rows import Rejections
from refcli.errors import DataError

T = TypeVar("T")
BROKEN_LINE = "broken_line"
MAX_LINE_BYTES = 16 << 20
"""Of a line; the records of a longer one would take many times that in memory."""
HEAD_BYTES = 64 << 10
_UTF8_BOM = b"\xef\xbb\xbf"


def read_rows(path: Path, parse: Callable[[bytes, int, str], T], problems: Problems) -> Iterator[T]:
    """Yield what `parse` makes of each line that is not blank.

    Args:
        path: plain or gzip.
        parse: called with the line, its 1-based number and its place for messages; raises DataError for a line that
            cannot be used.
        problems: collects every such line, as `broken_line`; a line that is not UTF-8 is one.

    Raises:
        DataError: the file is missing or damaged, holds nothing, or has no line that can be used.
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


def head(path: Path) -> bytes:
    """The first 64 KiB of a file, decompressed, without byte order mark and leading blanks; empty if unreadable."""
    return first_bytes(path).removeprefix(_UTF8_BOM).lstrip()


def first_bytes(path: Path) -> bytes:
    """The first 64 KiB of a file as they are, decompressed; empty if unreadable."""
    try:
        with open_binary(path) as stream:
            return stream.read(HEAD_BYTES)
    except (DataError, OSError):
        return b""


def some_object_has(path: Path, *keys: bytes) -> bool:
    """Whether a file begins with JSON lines one of which, in its first 64 KiB, has all these keys, at any depth."""
    beginning = head(path)
    if not beginning.startswith(b"{"):
        return False
    *whole, last = beginning.split(b"\n")
    lines = [
        line for line in (*(line for line in whole if line.rstrip().endswith(b"}")), last) if line.startswith(b"{")
    ]
    patterns = [re.compile(rb'"' + re.escape(key) + rb'"\s*:') for key in keys]
    return any(all(pattern.search(line) for pattern in patterns) for line in lines)


def are_fractions(boxes: Sequence[Sequence[float]]) -> bool:
    """Whether boxes are given in parts of the image rather than pixels: not a number is above 1."""
    numbers = [number for box in boxes for number in box]
    return bool(numbers) and all(0 <= number <= 1 for number in numbers)
