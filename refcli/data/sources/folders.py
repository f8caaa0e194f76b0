"""Many small files of one kind, in a folder or in an archive, read one by one."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

from refcli.data.reading.archives import Archive, is_archive, open_archive
from refcli.data.reading.streams import read_bytes
from refcli.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"


def list_files(source: Path, suffix: str, *, folder: str | None = None) -> dict[str, str]:
    """Where each file lies, by its stem.

    Args:
        source: a folder that directly holds the files, or a zip or uncompressed tar that holds them at any depth.
        suffix: what the files' names end with, ".xml".
        folder: of an archive, list only what lies directly in folders of this name.

    Returns:
        stem -> name inside `source`, to be given to `read_file`.

    Raises:
        DataError: `source` is neither, is compressed as a whole, or holds no such file or one twice.
    """
    if source.is_dir():
        names = sorted(entry.name for entry in source.iterdir() if entry.name.endswith(suffix))
    else:
        names = [
            name
            for name in _names_in_archive(source)
            if name.endswith(suffix) and folder in (None, PurePosixPath(name).parent.name)
        ]
    found: dict[str, str] = {}
    for name in names:
        stem = PurePosixPath(name).name.removesuffix(suffix)
        if found.setdefault(stem, name) != name:
            raise DataError(
                f"{stem}{suffix} is there twice, as {found[stem]} and as {name}",
                where=str(source),
                hint="unpack it and name the folder that is meant",
            )
    if not found:
        what = f"{suffix} file in {folder}" if folder else f"{suffix} file"
        raise DataError(f"it holds no {what}", where=str(source), hint="is it the right folder or archive?")
    return found


def read_file(source: Path, name: str, *, max_bytes: int) -> bytes:
    """The content of one of the files that `list_files` has found; an archive stays open for the next one.

    Raises:
        DataError: the file is gone, broken or larger than `max_bytes`.
    """
    if source.is_dir():
        return read_bytes(source / name, max_bytes=max_bytes)
    return _opened(source, os.getpid()).read(name, max_bytes=max_bytes)


def _names_in_archive(source: Path) -> list[str]:
    if not is_archive(source):
        raise DataError(
            "this is neither a folder nor a zip or tar archive",
            where=str(source),
            hint="unpack the download, or name the archive as it was published",
        )
    with source.open("rb") as stream:
        if stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC:
            raise DataError(
                "an archive that is compressed as a whole cannot be read file by file",
                where=str(source),
                hint="unpack it and name the folder",
            )
    with open_archive(source) as archive:
        return archive.names()


@lru_cache(maxsize=2)
def _opened(source: Path, process: int) -> Archive:
    """One archive per process: a forked worker must not share its parent's position in the file."""
    return open_archive(source)
