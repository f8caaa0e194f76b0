"""What the user is told when a run cannot write its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from refcli.errors import TrainingError


@contextmanager
def write_errors_told(what: str, where: Path) -> Iterator[None]:
    """Turn a failure to write into an error that says what to do: a full disk, a quota, a directory of someone else.

    torch and safetensors have their own exceptions for it.

    Raises:
        TrainingError: the block could not write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).strip().splitlines()[0]
        raise TrainingError(
            f"{what} cannot be written: {reason}",
            where=str(where),
            hint="make room there or make it writable; a run that has begun goes on with --resume",
        ) from error
