"""Stop training early: on a signal, after saving everything, or because a process failed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from refcli.engine.distributed.world import World
from refcli.errors import ExitCode, RefcliError, TrainingError

ItemT = TypeVar("ItemT")
EXIT_CODES = {
    signal.Signals[name]: code
    for name, code in (
        ("SIGTERM", ExitCode.PREEMPTED),
        ("SIGUSR1", ExitCode.PREEMPTED),
        ("SIGHUP", ExitCode.PREEMPTED),
        ("SIGINT", ExitCode.INTERRUPTED),
    )
    if hasattr(signal, name)  # Windows lacks some
}
"""SLURM sends SIGUSR1 ahead of a time limit on request (`--signal=USR1@120`), and SIGTERM at the limit; a closed
terminal or a lost connection sends SIGHUP."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a run after saving; not SIGHUP if it is ignored, as under nohup."""
    ignored = {number for number in EXIT_CODES if signal.getsignal(number) == signal.SIG_IGN}
    return [number for number in EXIT_CODES if number.name != "SIGHUP" or number not in ignored]


class StoppedError(TrainingError):
    """A signal stopped training, after everything was saved."""

    def __init__(self, step: int, received: signal.Signals) -> None:
        super().__init__(
            f"stopped by {received.name} after step {step}; the checkpoint is saved", hint="continue with --resume"
        )
        self.exit_code = EXIT_CODES[received]
        self.step = step


class ValidationStoppedError(TrainingError):
    """A signal interrupted a validation; the step before it is saved."""


class LoadingStalledError(TrainingError):
    """A signal arrived but the next batch did not, so the step that needs it is abandoned."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(
            f"stopped by {received.name} while waiting for a batch of the loading processes",
            hint="--resume continues from the last checkpoint; is the disk with the images available?",
        )
        self.exit_code = EXIT_CODES[received]


class OtherProcessFailedError(TrainingError):
    """Another process failed and reports its error; this one stops with the same exit code."""

    def __init__(self, exit_code: ExitCode, *, rank: int) -> None:
        super().__init__("another process failed, so this one stopped", where=f"process {rank}")
        self.exit_code = exit_code


class StopSignals:
    """While entered, the first stop signal is only recorded; a second one has its usual effect."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in stop_signals():
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def waiting_seconds(self) -> float:
        """Seconds since the signal arrived; 0 without one."""
        return time.monotonic() - self._received_at if self.received is not None else 0.0

    def interruptible(self, batches: Iterable[ItemT]) -> Iterator[ItemT]:
        """The batches of a validation, which end as soon as a signal arrives.

        Raises:
            ValidationStoppedError: one arrived.
        """
        for batch in batches:
            if self.received is not None:
                raise ValidationStoppedError(f"{self.received.name} arrived during the validation")
            yield batch

    def raise_stopped(self, step: int) -> None:
        """Raise the `StoppedError` of the signal (SIGTERM if only another process received one).

        Raises:
            StoppedError: always.
        """
        raise StoppedError(step, self.received or signal.SIGTERM)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._received_at = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """Make all processes fail if one does, so that none waits for an ended one. Every process must enter.

    Raises:
        RefcliError: the one raised inside; an `OtherProcessFailedError` if another process raised it.
    """
    failure: RefcliError | None = None
    try:
        yield
    except RefcliError as error:
        failure = error
    if world.any(failure is not None):
        codes = world.gather(None if failure is None else int(failure.exit_code))
        code = ExitCode(next(code for code in codes if code is not None))
        raise failure or OtherProcessFailedError(code, rank=world.rank)
