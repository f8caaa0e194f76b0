"""Bytes and lines of plain and gzip files (recognised by their first bytes), up to a size limit."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from refcli.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BYTES = 4 << 30
"""The largest decompressed file that is read whole; the largest annotation file in use takes about 1 GB."""
MAX_STREAM_BYTES = 256 << 30
"""The same for files that are read line by line or member by member."""
MAX_LINE_BYTES = 64 << 20
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
_ENCODING_BYTES = 64
"""Number of first bytes that suffice to recognise an encoding."""
_LEAST_UTF16 = 8
_HEAD_BYTES = 64 << 10


class _Bounded(io.RawIOBase):
    """A seekable decompressed stream; raises DataError beyond `max_bytes` and for broken compression."""

    def __init__(self, source: gzip.GzipFile, underlying: BinaryIO, where: str, max_bytes: int) -> None:
        self._source = source
        self._underlying = underlying
        self._where = where
        self._max_bytes = max_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed stream is not known")
        target = offset if whence == io.SEEK_SET else self._source.tell() + offset
        self._check(target)
        try:
            return self._source.seek(target)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._broken(error) from error

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._source.read(len(view))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._broken(error) from error
        view[: len(data)] = data
        self._check(self._source.tell())
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
            self._underlying.close()
        super().close()

    def _check(self, position: int) -> None:
        if position > self._max_bytes:
            raise _too_large(self._where, self._max_bytes)

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"the gzip data is truncated or broken ({error})", where=self._where, hint="copy or download the file again"
        )


def open_binary(path: Path, *, max_bytes: int = MAX_BYTES) -> BinaryIO:
    """Open a file for reading, decompressed if it is gzip; use it in a `with` statement.

    Raises:
        DataError: no such regular file; while reading: truncated gzip, or more than `max_bytes` of decompressed data.
    """
    where = str(path)
    if not path.is_file():
        what = "this is not a regular file" if path.exists() else "there is no such file"
        raise DataError(what, where=where, hint="check the path")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"cannot open the file ({error.strerror})", where=where, hint="check its permissions"
        ) from error
    is_gzip = file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
    if is_gzip:
        return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=file, mode="rb"), file, where, max_bytes))
    if path.stat().st_size > max_bytes:
        file.close()
        raise _too_large(where, max_bytes)
    return file


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole content of a file, decompressed.

    Raises:
        DataError: as `open_binary`.
    """
    with open_binary(path, max_bytes=max_bytes) as stream:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            return path.read_bytes()  # one allocation; a buffered reader would join two halves
        return stream.read()


def first_bytes(path: Path, num_bytes: int = _HEAD_BYTES) -> bytes:
    """The first bytes of a file, decompressed; empty if it cannot be read."""
    try:
        with open_binary(path) as stream:
            return stream.read(num_bytes)
    except (DataError, OSError):
        return b""


def text_start(path: Path) -> bytes:
    """As `first_bytes`, without a byte order mark and leading blanks."""
    return first_bytes(path).removeprefix(UTF8_BOM).lstrip()


def read_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text without its line end) for every line that is not blank.

    Lines are UTF-8; a line that is not is read as Latin-1. A byte order mark is dropped.

    Raises:
        DataError: as `open_binary`, or a line is longer than `max_line_bytes`.
    """
    for number, line in read_byte_lines(path, max_line_bytes=max_line_bytes):
        text = _decode(line)
        if not text.isspace():
            yield number, text


def read_byte_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """As `read_lines`, undecoded: for formats that must be UTF-8."""
    with open_binary(path, max_bytes=MAX_STREAM_BYTES) as stream:
        number = 0
        while line := stream.readline(max_line_bytes + 1):
            number += 1
            if len(line) > max_line_bytes:
                raise DataError(
                    f"line {number} is longer than {max_line_bytes >> 20} MiB",
                    where=str(path),
                    hint="expected one record per line; is the file a single JSON document?",
                )
            if number == 1:
                line = line.removeprefix(UTF8_BOM)
            line = line.rstrip(b"\r\n")
            if line and not line.isspace():
                yield number, line


def foreign_encoding(start: bytes) -> str | None:
    """The encoding of a text that is not UTF-8 by its first bytes, such as "UTF-16 (it begins with FF FE)", or None."""
    for mark, name in ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if start.startswith(mark):
            writer = ", as PowerShell's > writes" if mark == b"\xff\xfe" else ""
            return f"{name} (it begins with {mark.hex(' ').upper()}){writer}"
    head = start[:_ENCODING_BYTES]
    if len(head) >= _LEAST_UTF16 and 0 in (
        head[0::2].count(0) - len(head[0::2]),
        head[1::2].count(0) - len(head[1::2]),
    ):
        return "UTF-16 (every other byte is 0)"
    return None


def invalid_utf8(text: bytes) -> int | None:
    """Position of the first byte that is not valid UTF-8; None if there is none."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def stem(path: Path) -> str:
    """A file's name without ".gz" and the suffix before it: "unc_val" for "unc_val.pth.gz"."""
    return Path(path.name.removesuffix(".gz")).stem


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _too_large(where: str, max_bytes: int) -> DataError:
    return DataError(
        f"the file holds more than {max_bytes:,} bytes", where=where, hint="check that this is the right file"
    )
