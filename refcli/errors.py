"""Every mistake a user can make, with where it is, what to do next, and the exit code it leads to."""

from __future__ import annotations

from enum import IntEnum


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
    """A failure that the user can mend.

    Args:
        message: what is wrong, in one sentence.
        where: the file, key, record or argument it is about.
        hint: what to do next.
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


class UsageError(RefcliError):
    """An argument or option that cannot be obeyed."""

    exit_code = ExitCode.USAGE


class ConfigError(RefcliError):
    """A setting that does not exist or does not fit."""

    exit_code = ExitCode.USAGE


class DataError(RefcliError):
    """A data file that is missing, malformed or does not match its manifest."""

    exit_code = ExitCode.INTEGRITY


class ImageError(RefcliError):
    """One picture that cannot be read."""


class ExpressionError(RefcliError):
    """One expression that says nothing."""


class WeightsError(RefcliError):
    """A weights file that is missing, unsafe, or does not fit the model."""

    exit_code = ExitCode.INTEGRITY


class DownloadError(RefcliError):
    """A file that does not come: no connection, no access, no such file there, no room for it here."""


class GateError(RefcliError):
    """A `--fail-under` gate that was not met."""

    exit_code = ExitCode.GATE


class TrainingError(RefcliError):
    """A training run that cannot go on."""
