"""Output: data on stdout and messages on stderr, without control sequences."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refcli.errors import ExitCode, RefcliError, UsageError

console_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""The console for messages: everything that is not data."""
MAX_FAILURES_LISTED = 20
"""Failures of one kind that a command lists on stderr; it counts all."""


def open_streams() -> None:
    """Make stdin, stdout and stderr usable, however the program was started.

    A closed descriptor is opened on the null device. Otherwise a file could get its number and the output of libraries.
    Messages that cannot be written to stderr (closed, full, another encoding) never end the program.

    Raises:
        UsageError: stdout is closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if not isinstance(sys.stderr, _SafeStream):
        sys.stderr = _SafeStream(sys.stderr)
    if sys.stdout is None:
        raise UsageError("stdout is closed", hint="redirect it: > FILE, or > /dev/null")
    _escape_unknown(sys.stdout)


def flush_stdout() -> None:
    """Flush stdout, and ignore failures: otherwise the interpreter exits with its own code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _discard_stdout()


class _SafeStream:
    """A text stream whose writes never fail: after the first failure, output is dropped."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = _null_device() if stream is None else stream
        _escape_unknown(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._stream = _null_device()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = _null_device()


def _escape_unknown(stream: TextIO) -> None:
    """Make a stream escape the characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _null_device() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def write_line(text: str) -> None:
    """Write one line of data (or several) to stdout and flush it.

    It is UTF-8, whatever the encoding of stdout, with halves of surrogate pairs escaped as in JSON. Text from files
    must be made `printable` first. A closed pipe (`| head`) ends the program quietly.

    Raises:
        RefcliError: stdout cannot be written.
    """
    try:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:
            sys.stdout.write(text + "\n")
        else:
            sys.stdout.flush()
            binary.write(text.encode("utf-8", "backslashreplace") + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:
        exit_on_closed_pipe()
    except OSError as error:
        _discard_stdout()
        raise RefcliError(
            f"cannot write to stdout: {error.strerror}", hint="if it is redirected to a file: is the disk full?"
        ) from error


def exit_on_closed_pipe() -> NoReturn:
    """Exit without a message: the reader of stdout has closed the pipe.

    Raises:
        SystemExit: always, with code 0.
    """
    _discard_stdout()
    raise SystemExit(ExitCode.OK)


def _discard_stdout() -> None:
    """Discard buffered output, which the interpreter would flush to stdout at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log(text: str) -> None:
    """Write a message to stderr, without markup and with each line made `printable`."""
    console_err.print(printable_lines(text), markup=False)


def log_table(headings: Sequence[str], rows: Iterable[Sequence[str | int | None]], *, num_names: int = 1) -> None:
    """Write a table to stderr; all columns but the first `num_names` are aligned to the right."""
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_names else "right")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(printable(str(cell))) for cell in row))
    console_err.print(table)


def printable(text: str) -> str:
    """One line of text without control sequences: unprintable characters, also line feeds, are escaped."""
    return text if text.isprintable() else "".join(map(_printable_letter, text))


def printable_lines(text: str) -> str:
    """Text of several lines, each of them `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _printable_letter(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]
