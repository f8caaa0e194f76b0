"""Load batches in processes that end on request, outlive signals, and pass on complete errors."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from refcli.contracts.batch import Batch
from refcli.engine.checkpointing.run_lock import close_inherited_locks
from refcli.engine.stopping import EXIT_CODES, LoadingStalledError, StopSignals
from refcli.errors import RefcliError, TrainingError

SampleT = TypeVar("SampleT")
PREFETCHED_BATCHES = 4
"""Batches that each loading process keeps ready."""
POLL_SECONDS = 2.0
"""How often the main process interrupts its wait for a batch."""
STALLED_SECONDS = 20.0
"""How long a batch may take once a signal has arrived."""
KILL_SECONDS = 1.0
"""How long to wait for a killed process to end."""
SHARED_MEMORY = Path("/dev/shm")
TIMED_OUT = "DataLoader timed out"
DIED = "DataLoader worker"
"""How torch's message about an ended loading process begins."""
KILLED = re.compile(r"is killed by signal: (.+?)\. ")
GRACE_SECONDS = 60.0
"""How long a loading process outlives SIGTERM, so that the main process can finish its step."""


def iterate_batches(
    dataset: Dataset[SampleT],
    order: Sampler[Any] | Any,  # noqa: ANN401 - torch takes any iterable of keys
    collate: Callable[[Sequence[SampleT]], Batch],
    *,
    workers: int,
    signals: StopSignals | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of `dataset` in the order of a batch sampler.

    Args:
        order: yields lists of keys of `dataset`.
        workers: loading processes; 0 loads in this one.
        signals: once one has arrived, the wait for a batch is limited.

    Raises:
        RefcliError: as the dataset raised it, with its place and hint, even in a loading process.
        TrainingError: a loading process died, or shared memory is too small for its batches.
        LoadingStalledError: a signal arrived, but no batch did.
    """
    if workers:
        _check_locks()
    iterator = iter(
        DataLoader(
            _CarryErrors(dataset),
            batch_sampler=order,
            collate_fn=_CollateUnlessError(collate, shares=workers > 0),
            num_workers=workers,
            timeout=POLL_SECONDS if workers else 0,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # its own, so that loading draws nothing from the global one
        )
    )
    try:
        while True:
            with explain_loading_errors(getattr(iterator, "_workers", ())):
                batch = _next_batch(iterator, signals)
            if batch is None:
                return
            if isinstance(batch, RefcliError):
                raise batch
            yield batch
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            for process in iterator._workers:  # type: ignore[attr-defined]
                process.kill()  # if it hangs; the others have ended
                process.join(KILL_SECONDS)


def _check_locks() -> None:
    """Create one of the locks that loading processes need: torch cannot clean up if it gets none.

    Raises:
        TrainingError: the system provides none; on Linux they need shared memory.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise no_shared_memory() from error


def _next_batch(iterator: Iterator[Any], signals: StopSignals | None) -> Any:  # noqa: ANN401
    """The next batch or error; None at the end."""
    while True:
        try:
            return next(iterator, None)
        except RuntimeError as error:
            if not str(error).startswith(TIMED_OUT):
                raise
            if signals is not None and signals.received and signals.waiting_seconds > STALLED_SECONDS:
                raise LoadingStalledError(signals.received) from error
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if str(error).startswith("Caught "):  # raised in the dataset
                raise
            raise RuntimeError(f"{DIED} while it passed on a batch") from error


@contextmanager
def explain_loading_errors(processes: Sequence[Any] = ()) -> Iterator[None]:
    """Explain what ended a loading process; torch raises its error wherever the main process is at that moment.

    Args:
        processes: the loading processes, if known: torch's errors do not always state how one ended.

    Raises:
        TrainingError: a signal ended one, or there is no shared memory or open file left to pass batches.
    """
    try:
        yield
    except RuntimeError as error:
        if processes and str(error).startswith(DIED):
            connection.wait([process.sentinel for process in processes], KILL_SECONDS)
        explained = _explained(error, [process.exitcode for process in processes if process.exitcode])
        if explained is None:
            raise
        raise explained from error


def _explained(error: RuntimeError, exit_codes: Sequence[int]) -> TrainingError | None:
    """The meaning of torch's error about loading processes; None for any other error."""
    message = str(error)
    if message.startswith(("Too many open files", "received 0 items of ancdata")):
        return TrainingError(
            "too many files are open for the batches of the loading processes",
            hint="allow more (ulimit -n 65536), or use fewer data.workers",
        )
    if not message.startswith(DIED):
        return None
    number = _signal_of(error) or next((-code for code in exit_codes if code < 0), None)
    if number == signal.SIGBUS:
        return no_shared_memory()
    names = {int(known): known.name for known in signal.Signals}  # real-time signals have no name
    ending = "ended unexpectedly" if number is None else f"was ended by {names.get(number, f'signal {number}')}"
    doubt = " (was there enough memory?)" if number in (None, signal.SIGKILL) else ""
    return TrainingError(
        f"a loading process {ending}{doubt}",
        hint="--resume continues from the last checkpoint; fewer data.workers, or data.workers=0, need less memory",
    )


def _signal_of(error: BaseException | None) -> int | None:
    """The signal that ended a loading process, according to torch's error or its causes."""
    while error is not None:
        killed = KILLED.search(str(error))
        if killed:
            return next((number for number in signal.valid_signals() if signal.strsignal(number) == killed[1]), None)
        error = error.__cause__ or error.__context__
    return None


def no_shared_memory(needed: int | None = None, free: int | None = None) -> TrainingError:
    """The error that shared memory is too small to pass batches to the main process.

    Args:
        needed: bytes.
        free: bytes.
    """
    sizes = "" if needed is None or free is None else f": {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB free"
    return TrainingError(
        f"there is no room in {SHARED_MEMORY} for the batches of the loading processes{sizes}",
        where=str(SHARED_MEMORY),
        hint="give the container more (docker run --shm-size=8g), or --set data.workers=0; fewer data.workers or a "
        "smaller train.batch_size need less",
    )


def check_shared_memory(batch_bytes: int, *, workers: int, loaders: int) -> None:
    """Check that shared memory has room for all batches that loading processes keep ready.

    Args:
        batch_bytes: size of one batch.
        workers: loading processes of each loader.
        loaders: number of loaders at a time on this machine.

    Raises:
        TrainingError: it has too little.
    """
    if not workers:
        return
    needed = batch_bytes * (workers * PREFETCHED_BATCHES + 1) * loaders
    free = free_shared_memory()
    if free is not None and free < needed:
        raise no_shared_memory(needed, free)


def free_shared_memory() -> int | None:
    """Free bytes of shared memory; None on systems without /dev/shm."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):  # Windows, macOS
        return None
    return found.f_bavail * found.f_frsize


def init_worker(worker: int) -> None:
    """Limit a loading process to one thread, and let it outlive signals meant for the main process.

    A terminal sends Ctrl-C to the whole process group, and schedulers do the same with SIGTERM; a loading process that
    died at once would break the step that the main process still has to finish.
    """
    close_inherited_locks()
    cv2.setNumThreads(0)
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(GRACE_SECONDS, os._exit, args=(0,))
    timer.daemon = True
    timer.start()


class _CarryErrors(Dataset[Any], Generic[SampleT]):
    """Returns a RefcliError instead of raising it: torch would rebuild it from its text only."""

    def __init__(self, dataset: Dataset[SampleT]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> SampleT | RefcliError:  # noqa: ANN401 - sampler and dataset agree on it
        try:
            return self.dataset[key]
        except RefcliError as error:
            return error


class _CollateUnlessError:
    """Collates samples, or returns the first error among them.

    A loading process also moves the batch to shared memory here, so that a failure can be returned: torch would do it
    in a thread, lose the batch, and leave the main process waiting for it.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Batch], *, shares: bool) -> None:
        self.collate = collate
        self.shares = shares

    def __call__(self, samples: Sequence[Any]) -> Batch | RefcliError:
        for sample in samples:
            if isinstance(sample, RefcliError):
                return sample
        try:
            batch = self.collate(samples)
        except RefcliError as error:
            return error
        if self.shares:
            try:
                _share(batch)
            except (RuntimeError, OSError):  # /dev/shm is full
                return no_shared_memory()
        return batch


def _share(batch: object) -> None:
    """Move all tensors of a batch to shared memory."""
    if isinstance(batch, torch.Tensor):
        batch.share_memory_()  # type: ignore[no-untyped-call]
    elif is_dataclass(batch):
        for field in fields(batch):
            _share(getattr(batch, field.name))
