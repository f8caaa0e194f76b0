"""Checkpoints: written whole or not at all, loaded without running anything."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim import Optimizer

from refcli.engine.randomness import random_state, restore_random_state
from refcli.errors import DataError
from refcli.files import write_atomically

MODEL_FILE, EMA_FILE, STATE_FILE = "model.safetensors", "ema.safetensors", "state.pt"
NUM_KEPT = 2
"""The newest checkpoints that stay on disk, besides the best one."""


@dataclass
class TrainingState:
    """Everything that a step changes."""

    objective: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None
    """The averaged copy of the objective."""
    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time spent training, over all parts of the run."""


@dataclass(frozen=True)
class Pointer:
    """Which checkpoint is the last or the best."""

    step: int
    score: float | None = None


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-00001234/` directories, `last.json` and `best.json`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.root / f"step-{step:08d}"

    def pointer(self, name: str) -> Pointer | None:
        """What `last` or `best` points to; None where nothing was saved yet.

        Raises:
            DataError: the pointer or what it points to is damaged.
        """
        file = self.root / f"{name}.json"
        if not file.exists():
            return None
        try:
            pointer = Pointer(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(
                "the checkpoint pointer is damaged", where=str(file), hint="start again with --force"
            ) from error
        if not self.path(pointer.step).is_dir():
            raise DataError("the checkpoint pointed to is gone", where=str(self.path(pointer.step)))
        return pointer

    def save(self, state: TrainingState) -> None:
        """Write the checkpoint of `state.step`, point `last` to it, and remove old ones."""
        target = self.path(state.step)
        if not target.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.root, prefix=f".tmp-{target.name}-"))
            save_model(state.objective, str(temporary / MODEL_FILE))
            if state.ema is not None:
                save_model(state.ema, str(temporary / EMA_FILE))
            torch.save(
                {
                    "step": state.step,
                    "seconds": state.seconds,
                    "optimizer": state.optimizer.state_dict(),
                    "rng": random_state(),
                },
                temporary / STATE_FILE,
            )
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
            temporary.chmod(0o755)
            temporary.replace(target)
            _sync(self.root)
        self._point("last", Pointer(state.step))
        self._prune()

    def mark_best(self, step: int, score: float) -> None:
        """Point `best` to a saved checkpoint."""
        self._point("best", Pointer(step, score))
        self._prune()

    def load(self, step: int, state: TrainingState) -> None:
        """Put a checkpoint into `state`, random generators included.

        Raises:
            DataError: a file is missing, damaged, or of another model.
        """
        directory = self.path(step)
        try:
            load_model(state.objective, str(directory / MODEL_FILE))
            if state.ema is not None:
                load_model(state.ema, str(directory / EMA_FILE))
            saved: Mapping[str, Any] = torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True)
            state.optimizer.load_state_dict(saved["optimizer"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
            raise DataError(
                f"the checkpoint cannot be loaded: {error}",
                where=str(directory),
                hint="it is damaged or belongs to another model; start again with --force",
            ) from error
        state.step = int(saved["step"])
        state.seconds = float(saved["seconds"])
        restore_random_state(saved["rng"])

    def _point(self, name: str, pointer: Pointer) -> None:
        write_atomically(self.root / f"{name}.json", (json.dumps(vars(pointer)) + "\n").encode())

    def _prune(self) -> None:
        """Remove all checkpoints but the newest and the best, and what a killed process left half-written."""
        saved = sorted(self.root.glob("step-*"))
        best = self.pointer("best")
        kept = {*saved[-NUM_KEPT:], *([self.path(best.step)] if best else [])}
        last = self.pointer("last")
        kept.update([self.path(last.step)] if last else [])
        for path in (*saved, *self.root.glob(".tmp-step-*")):
            if path not in kept:
                shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Make sure that a file or directory is on disk before anything points to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
