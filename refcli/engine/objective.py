"""What the loop can train: anything that turns a batch into named losses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from refcli.contracts.batch import Batch
from refcli.model.flops import Work


class Objective(Protocol):
    """A module whose `forward` does the whole training computation.

    Losses computed outside the module that DistributedDataParallel wraps would leave its gradients out of step.
    """

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is minimised. `step` counts optimiser steps from 0."""


@runtime_checkable
class HasDepth(Protocol):
    """An objective that knows which of its parameters belong to the tower, and how deep they sit."""

    def param_depth(self, name: str) -> int | None:
        """0 for the tower's embeddings, 1..layers for its blocks, None for everything above the tower."""


@runtime_checkable
class BeginsSteps(Protocol):
    """An objective that changes something of its own between optimiser steps."""

    def begin_step(self, step: int) -> None:
        """Called once before each optimiser step, by every process."""


@runtime_checkable
class HasWork(Protocol):
    """An objective that knows what a batch takes; its lines of metrics have tokens per second and FLOPs utilisation."""

    def work(self, batch: Batch) -> Work:
        """Tokens and model FLOPs of one forward and backward pass on the batch; it may be on any device."""


@runtime_checkable
class HasMetrics(Protocol):
    """An objective that reports more than its losses, such as accuracies."""

    def metrics(self) -> dict[str, Tensor]:
        """Finite scalars of the last steps, by name.

        Read when a line of metrics is due and averaged over processes, so every process must give the same names.
        """


@runtime_checkable
class HasMasks(Protocol):
    """An objective that hides parts of a batch from the tower."""

    def num_masked(self, batch: Batch, step: int) -> dict[str, int]:
        """How many of what ("patches", "words") of the batch are hidden in a step."""


def work_of(objective: nn.Module, batch: Batch) -> Work:
    """What a batch takes; nothing for an objective that does not know."""
    return objective.work(batch) if isinstance(objective, HasWork) else Work()


def read_metrics(objective: nn.Module) -> dict[str, float]:
    """What an objective reports besides its losses; empty for one that reports nothing."""
    metrics = objective.metrics() if isinstance(objective, HasMetrics) else {}
    if not metrics:
        return {}
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
