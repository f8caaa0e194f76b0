"""Directories of weights appear whole or not at all, and a full disk is said to be one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from refcli.files import explain_write_errors, share_as_folder, temporary_folder

explain_weights_write_errors = partial(explain_write_errors, "the weights", also=(SafetensorError,))
"""`explain_write_errors` for weights; safetensors reports a failed write by an exception of its own."""


@contextmanager
def undone_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program by SystemExit, so that what is half done is cleared away; other handlers stay."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    would_kill = on_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if would_kill:
        signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        if would_kill:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell tells of a program that a signal ended


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well; `out` must not exist, or be empty.

    Raises:
        RefcliError: the disk refuses.
    """
    with explain_weights_write_errors(out), undone_on_sigterm():
        out = Path(os.path.realpath(out))  # Path.resolve has an error of its own for links that lead to themselves
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as folder:
            yield folder
            for path in folder.iterdir():
                share_as_folder(path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if out.is_dir():
                out.rmdir()
            folder.replace(out)
