"""Extract one checkpoint from a zip, under a name of our own, so that no name in the zip can choose a path."""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from refcli.data.reading.torch_files import CHECKPOINT_SUFFIXES
from refcli.errors import WeightsError

MAX_MEMBERS = 10_000
MAX_RATIO = 20
"""Trained weights hardly compress; a member that grows by more than this factor is not a checkpoint."""
MAC_FOLDER = "__MACOSX/"
"""Zips made on macOS hold a metadata file for every file in this folder."""
_BLOCK = 1 << 22
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # and NotImplementedError
    ValueError,
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_zip_of_weights(path: Path) -> bool:
    """Whether a file is a zip that holds checkpoints, rather than a checkpoint (which torch saves as a zip too)."""
    try:
        if not zipfile.is_zipfile(path):
            return False
    except _BROKEN:  # the last part of a split zip
        return False
    with _opened(path) as archive:
        return not any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())


def extract_checkpoint(path: Path, member: str | None, out: Path) -> str:
    """Write one member of a zip to `out`.

    Args:
        member: the end of its path, such as "unc/best_checkpoint.pth"; None for the only checkpoint in the zip.

    Returns:
        The member's full name.

    Raises:
        WeightsError: no such member or several (all are listed), a hostile or damaged zip.
        OSError: no room for it.
    """
    with _opened(path) as archive:
        info = _choose(archive, member, path)
        num_packed = max(1, min(info.compress_size, path.stat().st_size))  # the zip may state more than it has
        if info.file_size > MAX_RATIO * num_packed:
            raise WeightsError(
                f"the zip's member {info.filename!r} would grow {info.file_size // num_packed}-fold",
                where=str(path),
                hint="this is not a checkpoint; do not use the file",
            )
        try:
            _copy(archive, info, out, where=str(path))
        except _BROKEN as problem:
            out.unlink(missing_ok=True)
            if isinstance(problem, OSError) and problem.errno in _NO_ROOM:
                raise
            raise WeightsError(
                f"the zip's member {info.filename!r} cannot be read ({problem})",
                where=str(path),
                hint="pull again with --force",
            ) from problem
    return info.filename


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _BROKEN as problem:
        raise WeightsError(
            f"the zip cannot be read ({problem})", where=str(path), hint="pull again with --force"
        ) from problem


def _choose(archive: zipfile.ZipFile, member: str | None, path: Path) -> zipfile.ZipInfo:
    files = [info for info in archive.infolist() if not info.is_dir() and info.filename.isprintable()]
    infos = [info for info in files if not info.filename.startswith(MAC_FOLDER)]
    if len(infos) > MAX_MEMBERS:
        raise WeightsError(f"the zip has {len(infos):,} members", where=str(path), hint="these are not weights")
    if member is None:
        fitting = [info for info in infos if info.filename.lower().endswith(CHECKPOINT_SUFFIXES)]
    else:
        fitting = [info for info in infos if f"/{info.filename}".endswith(f"/{member}")]
    plain = [info for info in fitting if stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)]
    if len(plain) == 1:
        return plain[0]
    what = "checkpoint" if member is None else f"member that ends in {member!r}"
    raise WeightsError(
        f"the zip has {len(plain)} members that fit; it must have exactly one {what}",
        where=str(path),
        hint="it holds "
        + (", ".join(info.filename for info in infos[:20]) or "nothing")
        + "; name one with hf://ORGANISATION/REPOSITORY/FILE.zip#MEMBER",
    )


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, out: Path, *, where: str) -> None:
    """Copy block by block, and never more than the zip's directory states."""
    num_written = 0
    with archive.open(info) as source, out.open("wb") as file:
        while block := source.read(_BLOCK):
            num_written += len(block)
            if num_written > info.file_size:
                raise zipfile.BadZipFile(f"it holds more than the {info.file_size:,} bytes that {where} states")
            file.write(block)
    if num_written != info.file_size:
        raise zipfile.BadZipFile(f"it holds {num_written:,} of {info.file_size:,} bytes")
