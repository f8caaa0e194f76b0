"""JSON decoded into typed records; errors name the place in the document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from refcli.data.reading.streams import UTF8_BOM, foreign_encoding, invalid_utf8, read_bytes
from refcli.errors import DataError

T = TypeVar("T")
_EXCERPT = 60
"""Number of bytes of the document shown in a message."""
_STRING_OR_EXTRA = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|-?(?:NaN|Infinity)\b', re.DOTALL)
"""A string (an unterminated one extends to the end, which keeps the search linear), NaN or Infinity."""
_SURROGATES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file, plain or gzip.

    Args:
        path: the file.
        kind: the expected shape; fields that a `msgspec.Struct` does not name are skipped, and numbers may be strings.

    Raises:
        DataError: the file is missing, too large, not JSON, nested too deeply or of another shape; the message has the
            JSON path ("$.images[3].id").
    """
    return parse_json(read_bytes(path), kind, where=str(path))


def parse_json(data: bytes | msgspec.Raw, kind: type[T], *, where: str) -> T:
    """Parse JSON text as `read_json` does; `where` names the file and record in errors.

    Extensions of JSON that Python's json module writes are read: NaN and Infinity become strings, which convert to
    numbers where numbers are expected; a lone surrogate becomes U+FFFD, the replacement character.
    """
    text = bytes(data).removeprefix(UTF8_BOM)
    try:
        return _decoded(text, kind, where)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        repaired = _without_python_extras(text)
        if repaired == text:
            raise _not_json(text, error, where) from error
    try:
        return _decoded(repaired, kind, where)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(text, error, where) from error


def _decoded(text: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(text, type=kind, strict=False)
    except RecursionError as error:
        raise _too_deep(where) from error
    except msgspec.ValidationError as error:
        raise _wrong_shape(error, where) from error


def convert(value: object, kind: type[T], *, where: str) -> T:
    """Check plain Python data, such as an unpickled list of dicts, against a shape, by the rules of `read_json`.

    Raises:
        DataError: the data has another shape or is nested too deeply.
    """
    try:
        return msgspec.convert(value, kind, strict=False)
    except RecursionError as error:
        raise _too_deep(where) from error
    except UnicodeError as error:
        raise DataError("a text contains a lone surrogate", where=where, hint="check the file") from error
    except msgspec.ValidationError as error:
        raise _wrong_shape(error, where) from error


def _without_python_extras(text: bytes) -> bytes:
    """The text with NaN, Infinity and -Infinity as strings, and lone surrogates as U+FFFD."""
    if not any(extra in text for extra in (b"NaN", b"Infinity", b"\\ud", b"\\uD")):
        return text
    return _STRING_OR_EXTRA.sub(_repaired, text)


def _repaired(found: re.Match[bytes]) -> bytes:
    token = found[0]
    if not token.startswith(b'"'):
        return b'"' + token + b'"'
    if b"\\u" not in token:
        return token
    return _SURROGATES.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], token)


def _not_json(text: bytes, error: Exception, where: str) -> DataError:
    """The error for invalid JSON, with line and column if the parser reports the place."""
    encoding = foreign_encoding(text)
    if encoding:
        return DataError(f"this is not valid JSON: it is {encoding}", where=where, hint="save it as UTF-8")
    byte = invalid_utf8(text)
    if byte is not None:
        place = _line_and_column(text, byte)
        return DataError(
            f"this is not valid JSON: byte 0x{text[byte]:02X} ({place}) is not UTF-8",
            where=where,
            hint="save it as UTF-8",
        )
    message = str(error)
    found = re.search(r"\(byte (\d+)\)", message)
    if found is None:
        is_cut_off = "truncated" in message
        return DataError(
            f"this is not valid JSON: {'it ends in the middle' if is_cut_off else message}",
            where=where,
            hint="the file may be truncated" if is_cut_off else "check the file",
        )
    at = min(int(found[1]), max(len(text) - 1, 0))
    reason = message[: found.start()].strip().removeprefix("JSON is malformed: ")
    excerpt = text[at : at + _EXCERPT].decode("utf-8", "replace")
    return DataError(
        f"this is not valid JSON: {reason} ({_line_and_column(text, at)})",
        where=where,
        hint=f"the text there: {excerpt!r}",
    )


def _line_and_column(text: bytes, at: int) -> str:
    line, column = text.count(b"\n", 0, at) + 1, at - text.rfind(b"\n", 0, at)
    return f"line {line}, column {column}"


def _too_deep(where: str) -> DataError:
    return DataError("the data is nested too deeply", where=where, hint="this is not an annotation file")


def _wrong_shape(error: msgspec.ValidationError, where: str) -> DataError:
    return DataError(f"the data has an unexpected shape: {error}", where=where, hint="check the file and its format")
