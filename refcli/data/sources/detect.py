"""The format of a file, recognised by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from refcli.data.reading.archives import ZIP_MAGICS
from refcli.data.reading.streams import GZIP_MAGIC, first_bytes, foreign_encoding
from refcli.data.sources.record import Source
from refcli.data.sources.table import SOURCES
from refcli.errors import DataError, UsageError
from refcli.tables import lookup


def detect_format(path: Path, *, table: Mapping[str, str] = SOURCES) -> str:
    """The name of the source whose format a file or folder has.

    Raises:
        DataError: there is nothing at `path`.
        UsageError: it looks like none of the formats or like several.
    """
    if not path.exists():
        raise DataError("there is no such file", where=str(path), hint="check the path")
    sources: dict[str, Source] = {name: lookup(table, name, what="format") for name in table}
    matching = [name for name, source in sources.items() if source.sniff(path)]
    if len(matching) == 1:
        return matching[0]
    what, advice = ("", "") if matching else _identify(path)
    candidates = matching or list(sources)
    looks_like = "several formats" if matching else "none of the known formats"
    listed = "\n".join(f"  {name}: {sources[name].description}" for name in candidates)
    raise UsageError(
        f"the file looks like {looks_like}" + (f": it is {what}" if what else ""),
        where=str(path),
        hint=(f"{advice}, or choose" if advice else "choose") + f" one with --format:\n{listed}",
    )


def refuse_foreign(path: Path, form: str) -> None:
    """Refuse a file whose first bytes show that it holds no annotations in a format.

    Raises:
        DataError: it is text of another encoding than UTF-8, a web page, an image, a Git LFS pointer, ...
    """
    if not path.is_file() or (form == "parquet" and first_bytes(path).startswith(_PARQUET_MAGIC)):
        return
    what, advice = _match_first_bytes(first_bytes(path), path.name, _FOREIGN)
    if what:
        raise DataError(f"the file is {what}", where=str(path), hint=advice)


def _identify(path: Path) -> tuple[str, str]:
    """The kind of a foreign file by its first bytes, and advice; both empty if unknown."""
    if not path.is_file():
        return "", ""
    start = first_bytes(path)
    if not start:
        return ("empty", "name the annotation file") if path.stat().st_size == 0 else ("", "")
    if _LIST_OF_OBJECTS.match(start.lstrip()):
        return "one JSON list of objects", (
            "custom data needs one object per line; jq -c '.[]' FILE > lines.jsonl converts it"
        )
    return _match_first_bytes(start, path.name, _CONTAINERS)


def _match_first_bytes(start: bytes, name: str, rows: Sequence[_Row]) -> tuple[str, str]:
    """As `_identify`, by the encoding or a row of a table."""
    encoding = foreign_encoding(start)
    if encoding:
        return encoding, "save it as UTF-8"
    return next(
        ((f"{what} under the name {name}", hint) for magics, what, hint in rows if start.startswith(magics)), ("", "")
    )


_Row = tuple[tuple[bytes, ...], str, str]
"""First bytes, kind of file, advice."""
_PARQUET_MAGIC = b"PAR1"
_FOREIGN: tuple[_Row, ...] = (
    ((b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"), "a compressed archive", "unpack it"),
    (
        (_PARQUET_MAGIC,),
        "a Parquet file",
        "unpack it if it is in gzip; if it is truncated, download it again; choose parquet",
    ),
    ((b"%PDF",), "a PDF document", "name the annotation file"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), "an image", "name the annotation file; images go with --images"),
    ((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page", "download the file itself"),
    ((b"version https://git-lfs",), "a Git LFS pointer", "fetch the file itself: git lfs pull"),
)
_CONTAINERS: tuple[_Row, ...] = (
    (ZIP_MAGICS, "a zip archive", "unpack it and name the file in it"),
    ((GZIP_MAGIC,), "gzip that cannot be unpacked, or gzip in gzip,", "unpack it with gunzip"),
    *_FOREIGN,
)
_LIST_OF_OBJECTS = re.compile(rb"\[\s*\{")
