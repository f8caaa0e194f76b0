"""Pickles and torch-saved lists of plain data, read without running anything: every global is forbidden."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import BinaryIO, NoReturn

from refcli.data.reading.archives import ZIP_MAGICS, Archive, archive_of
from refcli.data.reading.pickle_survey import max_unpacked, survey_plain
from refcli.data.reading.streams import open_binary
from refcli.errors import DataError

MAX_PICKLE_BYTES = 2 << 30
"""The largest known list of this kind, 888,121 records with polygons, takes about 1 GB."""
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the container that torch wrote before 1.6."""
_TORCH_PROTOCOL = 1001
_START_BYTES = 32
_LIST_START = re.compile(rb"\x80.(?:\x95.{8})?\]|\(l", re.DOTALL)
"""PROTO, perhaps FRAME, EMPTY_LIST; or, in protocol 0, MARK and LIST."""
_HINT = "re-save as JSON, or as a pickle of plain lists, dicts, strings and numbers"


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, dicts, strings, bytes and numbers, and nothing else."""

    def __init__(self, stream: BinaryIO, where: str, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self._where = where

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        if module_name.split(".")[0] == "numpy":
            raise DataError(
                f"the pickle holds numpy values ({module_name}.{global_name})",
                where=self._where,
                hint="convert them to plain numbers (.item(), .tolist()) and re-save as JSON",
            )
        raise DataError(
            f"the pickle asks for the global {module_name}.{global_name}; only plain data is read",
            where=self._where,
            hint=_HINT,
        )

    def persistent_load(self, pid: object) -> NoReturn:
        raise DataError(
            "the pickle refers to objects outside of it (tensors, for instance); only plain data is read",
            where=self._where,
            hint=_HINT,
        )


def read_pickle(path: Path, *, encoding: str = "latin1") -> object:
    """Unpickle plain data, protocols 0 to 5, without ever importing or calling anything.

    Args:
        path: the file, plain or gzip.
        encoding: how byte strings of Python 2 become text; "latin1" never fails, and text that was UTF-8 can be
            recovered from it.

    Raises:
        DataError: a global or persistent id is asked for, the pickle is truncated or broken, or the file is too large.
    """
    with open_binary(path, max_bytes=MAX_PICKLE_BYTES) as stream:
        return _load(stream, path, encoding)


def read_torch_list(path: Path) -> object:
    """Read plain data that `torch.save` wrote, in its zip container or the one before torch 1.6, without torch.

    Raises:
        DataError: as `read_pickle`, or the file is neither container.
    """
    where = str(path)
    with open_binary(path, max_bytes=MAX_PICKLE_BYTES) as stream:
        magic = stream.read(len(ZIP_MAGICS[0]))
        stream.seek(0)
        if magic in ZIP_MAGICS:
            return _load_zip(stream, path)
        if _load(stream, path) != _TORCH_MAGIC:
            raise DataError("this is not a file written by torch.save", where=where, hint="check the file's format")
        if _load(stream, path) != _TORCH_PROTOCOL:
            raise DataError("the torch container has an unknown protocol", where=where, hint=_HINT)
        _load(stream, path)  # the writer's byte order and integer sizes: they concern tensors only
        return _load(stream, path)


def starts_torch_list(path: Path) -> bool:
    """Whether a file is a list saved by torch, by the container and its first opcodes; False if it cannot be read."""
    where = str(path)
    try:
        with open_binary(path, max_bytes=MAX_PICKLE_BYTES) as stream:
            magic = stream.read(len(ZIP_MAGICS[0]))
            stream.seek(0)
            if magic in ZIP_MAGICS:
                with archive_of(stream, where=where) as archive:
                    start = archive.read_starting_weights(_data_member(archive), num_bytes=_START_BYTES)
            else:
                if not magic.startswith(pickle.PROTO) or _load(stream, path) != _TORCH_MAGIC:
                    return False
                _load(stream, path)
                _load(stream, path)
                start = stream.read(_START_BYTES)
    except DataError:
        return False
    return _LIST_START.match(start) is not None


def _data_member(archive: Archive) -> str:
    names = [name for name in archive.names() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise DataError(
            f"the zip has {len(names)} members data.pkl, not one", where=archive.where, hint="check the file's format"
        )
    return names[0]


def _load_zip(stream: BinaryIO, path: Path) -> object:
    most = min(MAX_PICKLE_BYTES, max_unpacked(path.stat().st_size))
    with archive_of(stream, where=str(path)) as archive:
        content = archive.read(_data_member(archive), max_bytes=most)
    return _load(io.BytesIO(content), path)


def _load(stream: BinaryIO, path: Path, encoding: str = "latin1") -> object:
    """Unpickle what a look at every opcode has shown to be in proportion; the stream is left at its end."""
    start, where = stream.tell(), str(path)
    end = start + survey_plain(stream, num_stored=path.stat().st_size, where=where)
    stream.seek(start)
    try:
        content: object = _PlainUnpickler(stream, where, encoding).load()
    except DataError:
        raise
    except Exception as error:  # hostile bytes can make the unpickler raise any exception
        raise DataError(
            f"the pickle is truncated or broken ({type(error).__name__}: {error})",
            where=where,
            hint="copy or download the file again",
        ) from error
    stream.seek(end)
    return content
