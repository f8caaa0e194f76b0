"""One run at a time in a directory: two would mix their checkpoints, and --force would remove a running one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refcli.engine.distributed.world import World
from refcli.engine.stopping import failing_together
from refcli.errors import UsageError

_held: set[int] = set()
"""Open descriptors of locked directories."""


@contextmanager
def lock_run_directory(path: Path, world: World) -> Iterator[None]:
    """Lock a directory against other runs; the system releases the lock however the main process ends.

    A missing directory is created, and removed again if nothing is written. Without file locks (Windows, some network
    file systems) nothing is locked.

    Raises:
        UsageError: another run holds the lock; raised in every process.
    """
    is_new = not os.path.lexists(path)
    with failing_together(world):
        lock = _lock(path, "training") if world.is_main else None
    with _released(lock, path, is_new=is_new):
        yield


@contextmanager
def lock_output_folder(path: Path) -> Iterator[None]:
    """Like `lock_run_directory`, for a folder that a single process writes to.

    Raises:
        UsageError: another process holds the lock.
    """
    is_new = not os.path.lexists(path)
    with _released(_lock(path, "writing"), path, is_new=is_new):
        yield


def close_inherited_locks() -> None:
    """Close inherited locks in a forked process, which must not keep a directory locked after its parent has ended."""
    while _held:
        os.close(_held.pop())


@contextmanager
def _released(lock: int | None, path: Path, *, is_new: bool) -> Iterator[None]:
    try:
        yield
    finally:
        if lock is not None:
            _held.discard(lock)
            os.close(lock)
            if is_new:
                with suppress(OSError):
                    path.rmdir()


def _lock(path: Path, verb: str) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # writing there will report the problem
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise UsageError(
                f"another process is {verb} into this directory",
                where=str(path),
                hint="wait for it, stop it, or choose another --out",
            ) from error
        return None  # a file system without locks
    _held.add(descriptor)
    return descriptor
