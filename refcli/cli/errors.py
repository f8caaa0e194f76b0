"""Report exceptions on stderr and choose the exit code."""

from __future__ import annotations

import os
import traceback

from refcli.cli.output import console_err, printable, printable_lines
from refcli.errors import ExitCode, RefcliError

DEBUG_VARIABLE = "REFCLI_DEBUG"
"""Set it to 1 (or give `refcli --debug`) to see tracebacks."""


def report_error(error: BaseException) -> int:
    """Report an error on stderr and return its exit code."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        console_err.print(printable_lines("".join(traceback.format_exception(error))), markup=False, end="")
    if isinstance(error, RefcliError):
        _print_parts("error", error.message, where=error.where, hint=error.hint)
        return int(error.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        _print_parts(
            "error",
            f"the operating system reports: {error.strerror}",
            where=str(error.filename) if error.filename is not None else None,
            hint="check the free space and the permissions there",
        )
        return int(ExitCode.FAILED)
    if isinstance(error, UnicodeEncodeError):
        _print_parts(
            "error",
            "a name or text is not valid Unicode, which this step requires",
            where=str(error.object),
            hint="rename the file or folder",
        )
        return int(ExitCode.USAGE)
    _print_parts(
        "unexpected error",
        f"{type(error).__name__}: {error}",
        hint="run `refcli --debug ...` to see where it came from; it may be a bug in refcli",
    )
    return int(ExitCode.FAILED)


def _print_parts(kind: str, message: str, *, where: str | None = None, hint: str | None = None) -> None:
    for label, text, style in (
        (kind, message, "bold red"),
        ("where", where and printable(where), "bold"),
        ("hint", hint, "bold green"),
    ):
        if text:
            console_err.print(f"{label}:", style=style, end=" ")
            console_err.print(printable_lines(text), markup=False)
