"""How training stops before its end: on a signal with everything saved, or because a process failed."""

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
    if hasattr(signal, name)  # Windows has not all
}
"""SLURM sends SIGUSR1 ahead of a time limit where it is asked to (`--signal=USR1@120`), and SIGTERM at the limit; a
terminal that is closed, or a connection that is lost, sends SIGHUP."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a run in order; not SIGHUP where it is ignored, as under nohup."""
    ignored = {number for number in EXIT_CODES if signal.getsignal(number) == signal.SIG_IGN}
    return [number for number in EXIT_CODES if number.name != "SIGHUP" or number not in ignored]


class StoppedError(TrainingError):
    """Training was asked to stop and saved everything before it did."""

    def __init__(self, step: int, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name} after step {step}; it is saved", hint="continue with --resume")
        self.exit_code = EXIT_CODES[received]
        self.step = step


class ValidationStoppedError(TrainingError):
    """A validation was interrupted because a signal came; the step before it is saved."""


class LoadingStalledError(TrainingError):
    """A signal came while no batch did, so that the step which waits for one is given up."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(
            f"stopped by {received.name} while it waited for a batch of the loading processes",
            hint="--resume goes on from the last checkpoint; is the disk with the images available?",
        )
        self.exit_code = EXIT_CODES[received]


class OtherProcessFailedError(TrainingError):
    """Another process failed, which tells its error; this one only stops as well, with the same exit code."""

    def __init__(self, exit_code: ExitCode, *, rank: int) -> None:
        super().__init__("another process failed, so this one stopped", where=f"process {rank}")
        self.exit_code = exit_code


class StopSignals:
    """While entered, the first signal that stops a run is only noted; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in stop_signals():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def waiting_seconds(self) -> float:
        """How long ago the noted signal came; 0 without one."""
        return time.monotonic() - self._received_at if self.received is not None else 0.0

    def interruptible(self, batches: Iterable[ItemT]) -> Iterator[ItemT]:
        """The batches of a validation, which end as soon as a signal is noted.

        Raises:
            ValidationStoppedError: there is one.
        """
        for batch in batches:
            if self.received is not None:
                raise ValidationStoppedError(f"{self.received.name} arrived during the validation")
            yield batch

    def raise_stopped(self, step: int) -> None:
        """Raise the `StoppedError` of the noted signal (SIGTERM where it reached only another process).

        Raises:
            StoppedError: always.
        """
        raise StoppedError(step, self.received or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._received_at = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """What fails in one process fails in all of them, so that none waits for another that is gone.

    Every process must enter. For what only one of them does, such as writing files.

    Raises:
        RefcliError: the one that was raised inside; an `OtherProcessFailedError` where that was in another process.
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
