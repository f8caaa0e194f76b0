"""Errors for the user: each has a message, a place, a hint and an exit code."""

from __future__ import annotations

from enum import IntEnum

LONGEST_SHOWN = 400
"""Maximum number of characters that `shorten` keeps."""


class ExitCode(IntEnum):
    """Documented process exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    GATE = 4
    INTEGRITY = 5
    PREEMPTED = 75
    INTERRUPTED = 130


class RefcliError(Exception):
    """A failure that the user can fix.

    Args:
        message: the fault, in one sentence.
        where: the file, key, record or argument it is about.
        hint: the next step for the user.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    def in_one_line(self) -> str:
        """The message and the place, each shortened: for the `error` of an answer and for lists of failures."""
        return f"{shorten(self.message)} ({shorten(self.where)})" if self.where else shorten(self.message)


class UsageError(RefcliError):
    """An invalid argument or option."""

    exit_code = ExitCode.USAGE


class ConfigError(RefcliError):
    """An unknown setting or an invalid value."""

    exit_code = ExitCode.USAGE


class DataError(RefcliError):
    """A data file that is missing, malformed or does not match its manifest."""

    exit_code = ExitCode.INTEGRITY


class ImageError(RefcliError):
    """One image that cannot be read."""


class ExpressionError(RefcliError):
    """One expression without content."""


class WeightsError(RefcliError):
    """A weights file that is missing, unsafe, or does not fit the model."""

    exit_code = ExitCode.INTEGRITY


class DownloadError(RefcliError):
    """A failed download: no connection, no access, no such file, or a full disk."""


class GateError(RefcliError):
    """A `--fail-under` gate that was not met."""

    exit_code = ExitCode.GATE


class TrainingError(RefcliError):
    """A training run that cannot continue."""


def shorten(text: str) -> str:
    """Cut the middle out of a text longer than `LONGEST_SHOWN`, such as an untrusted name or value."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} ... {text[-half:]}"
