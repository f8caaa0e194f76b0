"""The two sinks: data on stdout, talk on stderr."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from refcli.errors import ExitCode

console_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""Where everything goes that is not the answer itself."""


def write_line(text: str) -> None:
    """Write one line of data to stdout and flush it; a closed pipe (`| head`) ends the program quietly."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()


def leave_closed_pipe() -> None:
    """End the program without a word: whoever read stdout has had enough.

    Raises:
        SystemExit: always, with code 0.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(ExitCode.OK)


def say(text: str) -> None:
    """Write talk to stderr, taken literally (no markup) and line by line `printable`."""
    console_err.print(printable_lines(text), markup=False)


def printable(text: str) -> str:
    """One line of text in which nothing draws on a terminal: what is not printable, line feeds too, is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """Text of several lines, each of them `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))
