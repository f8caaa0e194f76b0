"""The state of training, and how it is captured as plain values and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from refcli.engine.distributed.sharding import (
    full_model_state,
    full_optimizer_state,
    load_full_model_state,
    load_full_optimizer_state,
)
from refcli.engine.distributed.world import World

MODEL, EMA, REST = "model", "ema", "state"
"""The parts of a saved state: tensors by name, averaged tensors by name, and plain values."""


@dataclass(frozen=True)
class Pointer:
    """The last or the best checkpoint."""

    step: int
    score: float | None = None


@dataclass
class TrainingState:
    """Everything that a step changes, except the random generators."""

    objective: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None
    """The averaged copy of the objective."""
    frozen_names: frozenset[str] = frozenset()
    """Names in the state dict that are not averaged: the average has the objective's values."""
    step: int = 0
    """Optimiser steps done."""
    samples: int = 0
    """Samples that all processes together have trained on: the position in the data."""
    seconds: float = 0.0
    """Time spent training, over all sessions of the run."""
    validated: int = 0
    """The step of the last validation."""
    best: Pointer | None = None
    """The checkpoint with the best validation score so far."""

    @property
    def trained(self) -> nn.Module:
        """The model that is validated and returned in the end: the average if there is one."""
        return self.objective if self.ema is None else self.ema

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in which this state is saved."""
        return (MODEL, REST) if self.ema is None else (MODEL, EMA, REST)


@dataclass(frozen=True)
class BatchLayout:
    """How the samples of one optimiser step are distributed."""

    processes: int
    batch_size: int
    """Samples per forward pass and process."""
    accumulate: int
    """Forward passes per optimiser step."""

    @property
    def global_batch(self) -> int:
        """Samples of one forward pass in all processes together."""
        return self.processes * self.batch_size


def capture_state(state: TrainingState, layout: BatchLayout, world: World) -> dict[str, dict[str, Any]]:
    """The state of all processes, their random generators included, in parts. Every process must call it."""
    parts: dict[str, dict[str, Any]] = {MODEL: full_model_state(state.objective)}
    if state.ema is not None:
        parts[EMA] = {
            name: value for name, value in full_model_state(state.ema).items() if name not in state.frozen_names
        }
    parts[REST] = {
        "step": state.step,
        "samples": state.samples,
        "seconds": state.seconds,
        "validated": state.validated,
        "best": [state.best.step, state.best.score] if state.best else None,
        "layout": asdict(layout),
        "optimizer": full_optimizer_state(state.objective, state.optimizer),
        "generators": world.gather(capture_rng_state(world.device)),
    }
    return parts


def restore_state(parts: Mapping[str, Mapping[str, Any]], state: TrainingState, world: World) -> BatchLayout:
    """Restore what `capture_state` returned; returns its batch layout.

    The random generators are restored only if the number of processes is the same.

    Raises:
        RuntimeError, ValueError, KeyError, TypeError: the parts belong to another model.
    """
    rest = parts[REST]
    layout = BatchLayout(**rest["layout"])
    # The optimiser first: loading its state may change the weights, which are restored afterwards.
    load_full_optimizer_state(state.objective, state.optimizer, rest["optimizer"])
    load_full_model_state(state.objective, parts[MODEL])
    if state.ema is not None:
        shared = {name: parts[MODEL][name] for name in state.frozen_names}
        load_full_model_state(state.ema, {**parts[EMA], **shared})
    state.step, state.samples, state.seconds = rest["step"], rest["samples"], rest["seconds"]
    state.validated = rest["validated"]
    state.best = Pointer(*rest["best"]) if rest["best"] else None
    if layout.processes == world.size:
        restore_rng_state(rest["generators"][world.rank], world.device)
    return layout


def seed_generators(seed: int) -> None:
    """Seed torch (every device), numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def capture_rng_state(device: torch.device) -> dict[str, Any]:
    """States of the torch, numpy and python generators, as values that `weights_only` loading accepts.

    Args:
        device: the device of this process; the state of other GPUs is not included.
    """
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_rng_state(saved: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `capture_rng_state` returned; a GPU's generator is left alone if the state is from a CPU."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
    name, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, next_gauss = saved["python"]
    random.setstate((version, tuple(numbers), next_gauss))


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Restore the random generators afterwards, so that numbers drawn inside do not change later ones."""
    saved = capture_rng_state(device)
    try:
        yield
    finally:
        restore_rng_state(saved, device)
