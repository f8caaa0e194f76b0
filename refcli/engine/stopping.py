"""SIGTERM and SIGINT: finish the step, save, and leave with the documented exit code."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from refcli.errors import ExitCode, TrainingError

EXIT_CODES = {signal.SIGTERM: ExitCode.PREEMPTED, signal.SIGINT: ExitCode.INTERRUPTED}


class StoppedError(TrainingError):
    """Training was asked to stop and saved everything before it did."""

    def __init__(self, step: int, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name} after step {step}; it is saved", hint="continue with --resume")
        self.exit_code = EXIT_CODES[received]
        self.step = step


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is only noted; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in EXIT_CODES:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def leave(self, step: int) -> None:
        """Raise the `StoppedError` of the noted signal (SIGTERM where it reached only another process).

        Raises:
            StoppedError: always.
        """
        raise StoppedError(step, self.received or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
