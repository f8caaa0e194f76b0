"""Files of torch.save looked through before torch sees them: what they name, and that they hold what they declare."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from refcli.data.reading.pickle_machine import Surveyed
from refcli.data.reading.pickle_survey import FETCH_AGAIN, survey
from refcli.errors import RefcliError, UsageError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
SAFETENSORS_HEADER = 8
"""Bytes of a safetensors file, its header's length, before the header, which is JSON."""
LEGACY_PICKLES = 5
"""Magic number, protocol, system, object, storage keys: then the raw tensors follow."""
MAX_PICKLE_BYTES = 8 << 20
"""The largest OneRef model with all of its optimiser state is described in 360 kB."""
TORCHSCRIPT_FILE, TORCHSCRIPT_FOLDER = "constants.pkl", "code"
"""What an archive of a program has beside its data; torch before 2.6 runs such a program even on `weights_only`."""
_END, _END_64, _END_64_LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_AT_END_64 = 0xFFFFFFFF
Container = Literal["zip", "legacy", "safetensors"]


def container_of(path: Path, *, error: type[RefcliError]) -> Container:
    """How a file of tensors is packed, by its first bytes.

    Raises:
        UsageError: no such file.
        RefcliError: of the class `error`: nothing of the kind.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                start = file.read(tarfile.BLOCKSIZE)
    except OSError as problem:
        what = (
            "there is no such checkpoint file" if isinstance(problem, FileNotFoundError) else "the file cannot be read"
        )
        raise UsageError(what, where=str(path), hint=problem.strerror) from problem
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise UsageError(f"this is {what}, not a checkpoint file", where=str(path), hint="give the file itself")
    if _is_tar(start):
        raise error(
            "this is a tar archive: a Docker image, a NeMo model, or a checkpoint from before PyTorch 0.2",
            where=str(path),
            hint="refcli does not read it: unpack it, or load it with a program you trust and save its state_dict()",
        )
    if start[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{":
        return "safetensors"
    if start.startswith(ZIP_START):
        return "zip"
    if start.startswith(PICKLE_START):
        return "legacy"
    raise error(
        "this is not a PyTorch checkpoint",
        where=str(path),
        hint=f"it starts with {start[: SAFETENSORS_HEADER + 1]!r}: a web page or a Git LFS pointer instead of the file?"
        " download it again",
    )


def survey_torch_file(path: Path, container: Container, *, error: type[RefcliError]) -> Surveyed:
    """All that the pickles of a file of torch.save ask for, after the check that none of it is a bomb or a program.

    Raises:
        RefcliError: of the class `error`: damaged or hostile, a TorchScript archive, or one whose tensors would be
            larger than what it holds.
    """
    found = Surveyed()
    if container == "safetensors":
        raise error("this is a safetensors file, not a torch.save file", where=str(path))
    if container == "zip":
        try:
            _survey_zip(path, found, error)
        except RefcliError:
            raise
        except Exception as problem:  # a broken or hostile archive can fail in any way
            hint = f"{problem}; {FETCH_AGAIN}"
            raise error("the checkpoint is damaged", where=str(path), hint=hint) from problem
    else:
        _survey_legacy(path, found, error)
    declared, there = sum(found.storages.values()), path.stat().st_size
    if declared > there:
        raise error(
            f"the checkpoint's tensors declare {declared:,} bytes, the file has {there:,}",
            where=str(path),
            hint=FETCH_AGAIN,
        )
    return found


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _add(found: Surveyed, more: Surveyed) -> None:
    found.names |= more.names
    for key, num_bytes in more.storages.items():
        found.storages[key] = max(num_bytes, found.storages.get(key, 0))
    found.num_bytes = more.num_bytes


def _survey_legacy(path: Path, found: Surveyed, error: type[RefcliError]) -> None:
    """The pickles of a container from before torch 1.6, each of which stands where the last one ended."""
    start = 0
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            file.seek(start)
            _add(found, survey(file, num_bytes=path.stat().st_size, where=str(path), error=error))
            start += found.num_bytes
            if start > MAX_PICKLE_BYTES:
                raise error("the checkpoint's pickle is too large", where=str(path))


def _survey_zip(path: Path, found: Surveyed, error: type[RefcliError]) -> None:
    num_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_archive(archive, members, path, error)
        for member in _pickles(members):  # all of them, also of one name: torch may take another one than Python
            if member.file_size > MAX_PICKLE_BYTES:
                raise error("the checkpoint's pickle is too large", where=f"{path}: {member.filename}")
            _add(found, survey(archive.read(member), num_bytes=num_bytes, where=str(path), error=error))
    sizes: dict[str, int] = {}
    for member in members:
        name = _name(member)
        sizes[name] = min(member.file_size, sizes.get(name, member.file_size))
    there = {name.rpartition("/data/")[2]: size for name, size in sizes.items() if "/data/" in name}
    for key, declared in found.storages.items():
        if declared > there.get(key.lower(), 0):
            raise error(
                f"a tensor of the checkpoint declares {declared:,} bytes, the file has {there.get(key.lower(), 0):,}",
                where=f"{path}: data/{key[:100]!a}",
                hint=FETCH_AGAIN,
            )


def _check_archive(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path, error: type[RefcliError]
) -> None:
    """Refuse what is no checkpoint, what is packed, and what two programs would not read alike."""
    names = [_name(member).split("/") for member in members]
    if not _pickles(members):
        inside = [m.filename for m in members if m.filename.endswith(CHECKPOINT_SUFFIXES)]
        raise error(
            "this zip archive is not a checkpoint",
            where=str(path),
            hint=f"unpack it and convert {', '.join(filter(str.isprintable, inside[:5]))}" if inside else FETCH_AGAIN,
        )
    if any(parts[-1] == TORCHSCRIPT_FILE or TORCHSCRIPT_FOLDER in parts[:-1] for parts in names):
        raise error(
            "this is a TorchScript archive: a program with its tensors, not a checkpoint",
            where=str(path),
            hint="refcli runs no code from files; load it with a program you trust and save its state_dict()",
        )
    there, declared = path.stat().st_size, sum(member.file_size for member in members)
    packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
    if packed or declared > there:
        raise error(
            f"the archive declares {declared:,} bytes of content and has {there:,}",
            where=str(path),
            hint="torch.save never compresses: do not trust this file",
        )
    with path.open("rb") as file:
        if archive.comment or _directory(file, there) != archive.start_dir:
            raise error(
                "the archive's directory is not where the archive says",
                where=str(path),
                hint="two files may have been joined here: do not trust this file",
            )


def _pickles(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    return [member for member in members if f"/{_name(member)}".endswith("/data.pkl")]


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name as torch finds it: in small letters, with forward slashes."""
    return member.orig_filename.replace("\\", "/").lower()


def _directory(file: BinaryIO, num_bytes: int) -> int | None:
    """Where a zip says that its directory is; None if its end is not where torch looks for it.

    Python adds what lies before the archive to it; torch's reader goes by the number.
    """
    file.seek(max(0, num_bytes - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if not end.startswith(_END):
        return None
    (at,) = struct.unpack("<L", end[16:20])
    if not tail.startswith(_END_64_LOCATOR):
        return int(at)
    (at_64,) = struct.unpack("<Q", tail[8:16])
    file.seek(min(at_64, num_bytes))
    end_64 = file.read(_END_64_BYTES)
    if not end_64.startswith(_END_64) or len(end_64) < _END_64_BYTES:
        return None
    (directory,) = struct.unpack("<Q", end_64[48:56])
    return int(directory) if at in (_AT_END_64, directory) else None
