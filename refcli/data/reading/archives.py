"""Files in zip and tar archives, or in plain folders, read in memory; nothing is extracted to disk."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, cast

from refcli.data.reading.streams import GZIP_MAGIC, MAX_BYTES, MAX_STREAM_BYTES, open_binary, read_bytes
from refcli.errors import DataError

MAX_MEMBERS = 5_000_000
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_CHUNK = 1 << 20
_FAILED = (KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class Archive(ABC):
    """A zip or tar archive whose members are plain files with safe names; a context manager."""

    _members: Mapping[str, object]
    """Safe name -> the archive's own entry."""

    def __init__(self, where: str) -> None:
        self.where = where

    def names(self) -> list[str]:
        """Names of the files in archive order, without folders; reading in this order is fastest."""
        return list(self._members)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The content of one file.

        Raises:
            DataError: there is no such member, it is broken, encrypted, or larger than `max_bytes`.
        """
        try:
            with self._open(name) as stream:
                return self._read_at_most(stream, name, max_bytes)
        except _FAILED as error:
            raise self._failed(error, name) from error

    def read_first_bytes(self, name: str, *, num_bytes: int) -> bytes:
        """The first bytes of one file, fewer if it is shorter.

        Raises:
            DataError: there is no such member, or it is broken or encrypted.
        """
        try:
            with self._open(name) as stream:
                return stream.read(num_bytes)
        except _FAILED as error:
            raise self._failed(error, name) from error

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def _open(self, name: str) -> BinaryIO:
        """Open a member; KeyError if there is none."""

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_at_most(self, stream: BinaryIO, name: str, max_bytes: int) -> bytes:
        content = bytearray()
        while chunk := stream.read(_CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise DataError(
                    f"member {name!r} holds more than {max_bytes:,} bytes",
                    where=self.where,
                    hint="check that this is the right archive",
                )
        return bytes(content)

    def _failed(self, error: Exception, name: str | None = None) -> DataError:
        if isinstance(error, KeyError):
            return DataError(f"the archive has no member {name!r}", where=self.where, hint="check the archive")
        what = f"member {name!r} of the archive" if name else "the archive"
        return DataError(
            f"{what} cannot be read ({error})", where=self.where, hint="copy or download the archive again"
        )


class _ZipArchive(Archive):
    def __init__(self, stream: BinaryIO, where: str) -> None:
        super().__init__(where)
        self._stream = stream
        try:
            self._zip = zipfile.ZipFile(stream)
        except _FAILED as error:
            raise self._failed(error) from error
        infos = self._zip.infolist()
        _check_count(len(infos), where)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(info.filename, "a link or device", where)
            name = _safe_name(info.orig_filename, where)
            if name and not info.is_dir():
                self._members[name] = info

    def close(self) -> None:
        self._zip.close()
        self._stream.close()

    def _open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._zip.open(self._members[name]))


class _TarArchive(Archive):
    def __init__(self, stream: BinaryIO, where: str) -> None:
        super().__init__(where)
        self._stream = stream
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.TarFile(fileobj=stream)
            for count, member in enumerate(self._tar, start=1):
                _check_count(count, where)
                name = _safe_name(member.name, where)
                if not (member.isreg() or member.isdir()):
                    raise _unsafe(member.name, "a link or device", where)
                if name and member.isreg():
                    self._members[name] = member
        except _FAILED as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._tar.close()
        self._stream.close()

    def _open(self, name: str) -> BinaryIO:
        stream = self._tar.extractfile(self._members[name])
        if stream is None:
            raise KeyError(name)
        return cast(BinaryIO, stream)


def open_archive(path: Path) -> Archive:
    """Open a zip or tar archive, possibly inside gzip, and check the name and kind of every member.

    Raises:
        DataError: the file is missing, broken or neither zip nor tar, or a member has an absolute path, contains "..",
            or is a link or a device.
    """
    stream = open_binary(path, max_bytes=MAX_STREAM_BYTES)
    try:
        return archive_of(stream, where=str(path))
    except BaseException:
        stream.close()
        raise


def archive_of(stream: BinaryIO, *, where: str) -> Archive:
    """The archive in an open, seekable stream, which the archive then owns; `where` names it in errors."""
    magic = stream.read(len(ZIP_MAGICS[0]))
    stream.seek(0)
    if magic not in ZIP_MAGICS:
        return _TarArchive(stream, where)
    if not _seeks_to_end(stream):
        stream = _in_memory(stream, where)
    return _ZipArchive(stream, where)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, possibly inside gzip; False if it is missing or unreadable."""
    try:
        with open_binary(path, max_bytes=MAX_STREAM_BYTES) as stream:
            block = stream.read(tarfile.BLOCKSIZE)
            if block.startswith(ZIP_MAGICS):
                return True
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (DataError, tarfile.TarError):
        return False
    return True


def list_files(source: Path, suffix: str, *, folder: str | None = None) -> dict[str, str]:
    """List the files with a suffix in a folder or an archive.

    Args:
        source: a folder that directly holds the files, or a zip or uncompressed tar that holds them at any depth.
        suffix: such as ".xml".
        folder: in an archive, list only the files directly inside folders of this name.

    Returns:
        stem -> name inside `source`, for `read_file`.

    Raises:
        DataError: `source` is neither or is compressed as a whole, or holds no such file, or holds two of one name.
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
                f"{stem}{suffix} occurs twice, as {found[stem]} and as {name}",
                where=str(source),
                hint="unpack it and name the right folder",
            )
    if not found:
        what = f"{suffix} file in {folder}" if folder else f"{suffix} file"
        raise DataError(f"there is no {what}", where=str(source), hint="check that it is the right folder or archive")
    return found


def read_file(source: Path, name: str, *, max_bytes: int) -> bytes:
    """The content of a file listed by `list_files`; an archive stays open for further calls.

    Raises:
        DataError: the file is missing, broken or larger than `max_bytes`.
    """
    if source.is_dir():
        return read_bytes(source / name, max_bytes=max_bytes)
    return _opened(source, os.getpid()).read(name, max_bytes=max_bytes)


def _seeks_to_end(stream: BinaryIO) -> bool:
    try:
        stream.seek(0, io.SEEK_END)
    except io.UnsupportedOperation:
        return False
    stream.seek(0)
    return True


def _in_memory(stream: BinaryIO, where: str) -> BinaryIO:
    with stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(
            f"the compressed zip holds more than {MAX_BYTES:,} bytes",
            where=where,
            hint="decompress it with gunzip first",
        )
    return io.BytesIO(content)


def _safe_name(name: str, where: str) -> str:
    """The name with forward slashes and without "." parts."""
    parts = name.replace("\\", "/").split("/")
    if (not parts[0] and len(parts) > 1) or parts[0].endswith(":"):
        raise _unsafe(name, "an absolute path", where)
    if ".." in parts:
        raise _unsafe(name, 'a path with ".."', where)
    if "\0" in name:
        raise _unsafe(name, "a path with a zero byte", where)
    return "/".join(part for part in parts if part not in ("", "."))


def _unsafe(name: str, what: str, where: str) -> DataError:
    return DataError(f"archive member {name!r} is {what}", where=where, hint="do not use this archive")


def _check_count(count: int, where: str) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"the archive has more than {MAX_MEMBERS:,} members", where=where, hint="split the archive")


def _names_in_archive(source: Path) -> list[str]:
    if not is_archive(source):
        raise DataError(
            "this is neither a folder nor a zip or tar archive",
            where=str(source),
            hint="unpack the download, or name the archive as it was published",
        )
    with source.open("rb") as stream:
        if stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
            raise DataError(
                "an archive that is compressed as a whole cannot be read file by file",
                where=str(source),
                hint="unpack it and name the folder",
            )
    with open_archive(source) as archive:
        return archive.names()


@lru_cache(maxsize=2)
def _opened(source: Path, process: int) -> Archive:
    """One archive per process: a forked worker must not share its parent's file position."""
    return open_archive(source)
