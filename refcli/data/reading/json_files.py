"""JSON read straight into typed records, with errors that say where in the document they are."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from refcli.data.reading.streams import read_bytes
from refcli.errors import DataError

T = TypeVar("T")
_UTF8_BOM = b"\xef\xbb\xbf"


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file, plain or gzip.

    Args:
        path: the file.
        kind: the shape wanted; fields that a `msgspec.Struct` does not name are skipped, numbers may be written as
            strings.

    Raises:
        DataError: the file is missing, too large, no JSON, nested too deeply, or of another shape; the message has the
            JSON path ("$.images[3].id").
    """
    return parse_json(read_bytes(path), kind, where=str(path))


def parse_json(data: bytes, kind: type[T], *, where: str) -> T:
    """Parse JSON text as `read_json` does; `where` names the file and record in errors."""
    try:
        return msgspec.json.decode(data.removeprefix(_UTF8_BOM), type=kind, strict=False)
    except RecursionError as error:
        raise _too_deep(where) from error
    except msgspec.ValidationError as error:
        raise _wrong_shape(error, where) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"this is not valid JSON: {error}", where=where, hint="the file may be truncated") from error


def convert(value: object, kind: type[T], *, where: str) -> T:
    """Check plain Python data, such as an unpickled list of dicts, against a shape, by the rules of `read_json`.

    Raises:
        DataError: the data has another shape or is nested too deeply.
    """
    try:
        return msgspec.convert(value, kind, strict=False)
    except RecursionError as error:
        raise _too_deep(where) from error
    except msgspec.ValidationError as error:
        raise _wrong_shape(error, where) from error


def _too_deep(where: str) -> DataError:
    return DataError("the data is nested too deeply", where=where, hint="this is no annotation file")


def _wrong_shape(error: msgspec.ValidationError, where: str) -> DataError:
    return DataError(f"the data has an unexpected shape: {error}", where=where, hint="check the file and its format")
