"""Atomic writes, temporary files and safe paths: files appear complete or not at all, and never through a link."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from refcli.errors import RefcliError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_NAME_BYTES = 200
"""Maximum bytes of a plain name: file systems allow 255, and suffixes and numbers are appended."""
TEMPORARY_SUFFIX = ".refcli-part"
_TEMPORARY_NAME = re.compile(rf"\..*\.(?:([0-9a-f]{{8}})-)?[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
"""Identifies the machine: in a shared folder, locks of another machine may be invisible here."""
_STALE_SECONDS = 86_400
"""Age from which temporaries of other machines are considered stale."""
_MAX_STEM = 40
"""Number of characters of the final name that a temporary name repeats."""
_MAX_TRIES = 8
_HASH_BLOCK = 1 << 20
_swept: set[str] = set()
"""Folders in which this process has already removed stale temporaries."""


@contextmanager
def explain_write_errors(
    what: str,
    where: Path,
    *,
    error: type[RefcliError] = RefcliError,
    also: tuple[type[Exception], ...] = (),
    can_resume: bool = False,
) -> Iterator[None]:
    """Turn a failure to write (a full disk, a quota, no permission) into an error with the place and a hint.

    Args:
        what: the object that the block writes, such as "the weights".
        where: the place to report if the system names none.
        error: the class of the error.
        also: exceptions by which libraries report a failed write, besides OSError.
        can_resume: whether the command can complete the run later with `--resume`.

    Raises:
        RefcliError: the block could not write.
    """
    failures: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except failures as problem:
        first_line = str(problem).strip().partition("\n")[0]
        reason, file = (problem.strerror, problem.filename) if isinstance(problem, OSError) else (None, None)
        hint = "make room there, make it writable, or choose another folder"
        raise error(
            f"{what} cannot be written: {reason or first_line}",
            where=str(file or where),
            hint=hint + ("; a run that has started continues with --resume" if can_resume else ""),
        ) from problem


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its final name and move it there, so that a crash never leaves half a file.

    A link at `path` is replaced, not followed.
    """
    with open_atomically(path) as file:
        file.write(content)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """As `write_atomically`, for a file that is written in parts; if the block fails, `path` stays as it was."""
    with temporary_file(path) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, to be written and then moved there; it is removed if it is not moved.

    It is created exclusively, with the permissions of the umask. Stale temporaries of killed processes in the same
    folder are removed first, once per process and folder.
    """
    with _temporary(path, is_folder=False) as temporary:
        yield temporary


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """As `temporary_file`, but a folder."""
    with _temporary(path, is_folder=True) as temporary:
        yield temporary


def share_as_folder(path: Path) -> None:
    """Give a file the read and write permissions of its folder: safetensors gives them to the owner only."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def remove_stale_temporaries(folder: Path) -> None:
    """Remove the temporaries of killed processes in a folder: those of this user that are not locked.

    Those of other machines are removed when they are a day old.
    """
    try:
        with os.scandir(folder) as entries:
            found = [
                (Path(entry.path), name[1]) for entry in entries if (name := _TEMPORARY_NAME.fullmatch(entry.name))
            ]
    except OSError:
        return
    for path, host in found:
        _remove_if_stale(path, least_age=0 if host in (None, _HOST) else _STALE_SECONDS)


@contextmanager
def _temporary(path: Path, *, is_folder: bool) -> Iterator[Path]:
    folder = os.path.abspath(path.parent)  # noqa: PTH100 - links stay
    if folder not in _swept:
        _swept.add(folder)
        remove_stale_temporaries(path.parent)
    temporary, handle = _create(path, is_folder=is_folder)
    try:
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)
        if is_folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _create(path: Path, *, is_folder: bool) -> tuple[Path, int | None]:
    """A new temporary and, on systems with file locks, the open handle that holds its lock."""
    temporary, handle = _create_unlocked(path, is_folder=is_folder)
    for _ in range(_MAX_TRIES):
        if handle is None or _is_locked_at(handle, temporary):
            break
        os.close(handle)  # another process considered it stale before it was locked
        temporary, handle = _create_unlocked(path, is_folder=is_folder)
    return temporary, handle


def _create_unlocked(path: Path, *, is_folder: bool) -> tuple[Path, int | None]:
    temporary = path.parent / f".{path.name[:_MAX_STEM]}.{_HOST}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    if is_folder:
        temporary.mkdir()
        return temporary, None if fcntl is None else os.open(temporary, os.O_RDONLY)
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    if fcntl is None:
        os.close(handle)
        return temporary, None
    return temporary, handle


def _is_locked_at(handle: int, path: Path) -> bool:
    """Lock a new temporary; False if it was removed in the meantime."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is considered stale
        return True
    return _is_at(handle, path)


def _remove_if_stale(path: Path, *, least_age: float) -> None:
    try:
        facts = path.lstat()
        if time.time() - facts.st_mtime < least_age:
            return
        is_folder = stat.S_ISDIR(facts.st_mode)
        if fcntl is None or facts.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(facts.st_mode)):
            return
        handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(handle, path):
            return
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # its process is alive, or the file system has no locks
        return
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file in a folder, and cannot be anything else.

    It has no slash, backslash or colon, no control characters or lone surrogates, does not begin with a full
    stop, and has at most `MAX_NAME_BYTES` bytes.
    """
    return (
        name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
    )


def path_inside(folder: Path, name: str) -> Path | None:
    """The path of a name from an untrusted file, with or without folders; None if it leaves the folder or uses a link.

    The folder itself may be a link; nothing needs to exist.
    """
    parts = name.split("/")
    if not all(map(is_plain_name, parts)):
        return None
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            return None
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
