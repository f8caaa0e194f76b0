"""Objectives: the modules that the loop can train, which turn a batch into named losses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from refcli.contracts.batch import Batch
from refcli.model.flops import Work


class Objective(Protocol):
    """A module whose `forward` does the whole training computation.

    The losses must be computed inside the module that DistributedDataParallel wraps, or gradients are not synchronised.
    """

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is minimised. `step` counts optimiser steps from 0."""


@runtime_checkable
class HasDepth(Protocol):
    """An objective that knows the depth of its parameters in the tower."""

    def param_depth(self, name: str) -> int | None:
        """0 for the tower's embeddings, 1..layers for its blocks, None for everything above the tower."""


@runtime_checkable
class BeginsSteps(Protocol):
    """An objective with something to do before each optimiser step."""

    def begin_step(self, step: int) -> None:
        """Called once before each optimiser step, by every process."""


@runtime_checkable
class HasWork(Protocol):
    """An objective that knows the work of a batch; its metrics include tokens per second and FLOPs utilisation."""

    def work(self, batch: Batch) -> Work:
        """Tokens and model FLOPs of one forward and backward pass on the batch, which may be on any device."""


@runtime_checkable
class HasMetrics(Protocol):
    """An objective that reports more than its losses, such as accuracies."""

    def metrics(self) -> dict[str, Tensor]:
        """Finite scalars of the last steps, by name.

        Read when a line of metrics is due and averaged over processes, so every process must give the same names.
        """


@runtime_checkable
class HasMasks(Protocol):
    """An objective that masks parts of a batch."""

    def num_masked(self, batch: Batch, step: int) -> dict[str, int]:
        """Number of masked items in a step by kind: "patches", "words"."""


def has_static_graph(objective: nn.Module) -> bool:
    """Whether every step uses the same parameters, so that DistributedDataParallel need not look for unused ones."""
    return bool(getattr(objective, "has_static_graph", False))


def work_of(objective: nn.Module, batch: Batch) -> Work:
    """The work of a batch; zero if the objective does not know it."""
    return objective.work(batch) if isinstance(objective, HasWork) else Work()


def read_metrics(objective: nn.Module) -> dict[str, float]:
    """The metrics of an objective besides its losses; empty if it has none."""
    metrics = objective.metrics() if isinstance(objective, HasMetrics) else {}
    if not metrics:
        return {}
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
