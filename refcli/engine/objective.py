"""What the loop can train: anything that turns a batch into named losses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from refcli.contracts.batch import Batch


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
