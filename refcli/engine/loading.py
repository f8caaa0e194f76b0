"""Batches from loading processes that end when asked, keep quiet on signals, and pass errors on whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from refcli.contracts.batch import Batch
from refcli.engine.run_lock import let_go_of_inherited_locks
from refcli.engine.stopping import EXIT_CODES
from refcli.errors import RefcliError

SampleT = TypeVar("SampleT")
PREFETCHED_BATCHES = 4
"""Batches that each loading process keeps ready."""
GRACE_SECONDS = 60.0
"""How long a loading process outlives a SIGTERM, so that the main process can finish its step."""


def iterate_batches(
    dataset: Dataset[SampleT],
    order: Sampler[Any] | Any,  # noqa: ANN401 - torch takes any iterable of keys
    collate: Callable[[Sequence[SampleT]], Batch],
    *,
    workers: int,
) -> Generator[Batch, None, None]:
    """Yield the batches of `dataset` in the order of a batch sampler.

    Args:
        order: yields lists of keys of `dataset`.
        workers: loading processes; 0 loads in this one.

    Raises:
        RefcliError: as the dataset raised it, with its place and hint, also from a loading process.
    """
    iterator = iter(
        DataLoader(
            _CarryErrors(dataset),
            batch_sampler=order,
            collate_fn=_CollateUnlessError(collate),
            num_workers=workers,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # its own, so that starting to load draws nothing from the global one
        )
    )
    try:
        for batch in iterator:
            if isinstance(batch, RefcliError):
                raise batch
            yield batch
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def init_worker(worker: int) -> None:
    """Keep a loading process to one thread, and let it outlive signals meant for the main process.

    A terminal sends Ctrl-C to the whole process group, and schedulers do the same with SIGTERM; a loader that died at
    once would break the step that the main process still wants to finish.
    """
    let_go_of_inherited_locks()
    cv2.setNumThreads(0)
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(GRACE_SECONDS, os._exit, args=(0,))
    timer.daemon = True
    timer.start()


class _CarryErrors(Dataset[Any], Generic[SampleT]):
    """Returns a RefcliError instead of raising it: torch would rebuild it from its text alone."""

    def __init__(self, dataset: Dataset[SampleT]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> SampleT | RefcliError:  # noqa: ANN401 - the sampler's and the dataset's affair
        try:
            return self.dataset[key]
        except RefcliError as error:
            return error


class _CollateUnlessError:
    """Collates samples, or passes on the first error among them."""

    def __init__(self, collate: Callable[[Sequence[Any]], Batch]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Batch | RefcliError:
        for sample in samples:
            if isinstance(sample, RefcliError):
                return sample
        try:
            return self.collate(samples)
        except RefcliError as error:
            return error
