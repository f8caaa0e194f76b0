"""Validation during training: when it ran, which checkpoint is the best, and when training stops improving."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from refcli.engine.checkpointing.run_dir import VALIDATION_PREFIX, RunDir
from refcli.engine.checkpointing.state import Pointer, TrainingState, preserve_rng_state
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.sharding import unsharded
from refcli.engine.loading import explain_loading_errors
from refcli.engine.stopping import ValidationStoppedError, failing_together

SCORE = "score"
"""The validation metric that chooses the best checkpoint; larger is better."""


def read_validations(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every validation in a run's metrics.jsonl, by step, ascending; empty without that file."""
    validations: dict[int, dict[str, float]] = {}
    for line in RunDir(run).metrics():
        metrics = {
            name.removeprefix(VALIDATION_PREFIX): float(value)
            for name, value in line.items()
            if name.startswith(VALIDATION_PREFIX)
            and isinstance(value, int | float)
            and abs(value) <= sys.float_info.max
        }
        if metrics:
            validations[line["step"]] = metrics
    return validations


def restore_validation(state: TrainingState, context: TrainingContext) -> None:
    """Add to a resumed state the validation that ran after its checkpoint was saved, as metrics.jsonl has it.

    Every process must call it.
    """
    metrics = read_validations(context.run.path).get(state.step, {}) if context.world.is_main else {}
    score = context.world.gather(metrics.get(SCORE))[0]
    if score is None or state.validated == state.step:
        return
    state.validated = state.step
    if _is_best(state, score):
        state.best = Pointer(state.step, score)
        if context.world.is_main:
            context.run.checkpoints.write_best(state.best)


class ValidationTracker:
    """Validates models and keeps track of the best one. Every process must call every method; the main one writes."""

    def __init__(self, context: TrainingContext) -> None:
        self.context = context

    def run(self, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Validate the averaged model if there is one, else the objective; record it if it is the best so far.

        The checkpoint of this step is already on disk. A validation that a signal interrupts leaves no trace, so that
        a resumed run repeats it.

        Raises:
            RefcliError: of `validate`, or the metrics cannot be written.
        """
        world = self.context.world
        model = unsharded(state.trained)
        is_complete = True
        with failing_together(world), explain_loading_errors():
            if world.is_main:
                try:
                    self._run_here(model, state, validate)
                except ValidationStoppedError:
                    is_complete = False
        if not world.any(not is_complete):
            state.validated = state.step

    def has_stalled(self, state: TrainingState) -> bool:
        """Whether the last `train.patience` validations have not improved on the best; False without it."""
        patience, world = self.context.train.patience, self.context.world
        if patience is None:
            return False
        best = state.best.step if state.best else 0
        since = [step for step in read_validations(self.context.run.path) if step > best] if world.is_main else []
        return world.any(len(since) >= patience)

    def _run_here(
        self, model: nn.Module, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]
    ) -> None:
        context = self.context
        model.eval()
        before = time.perf_counter()
        with preserve_rng_state(context.world.device), torch.inference_mode():
            metrics = validate(model)
        seconds = time.perf_counter() - before
        is_best = _is_best(state, metrics[SCORE])
        if is_best:
            state.best = Pointer(state.step, metrics[SCORE])
        line = {"step": state.step, **{f"{VALIDATION_PREFIX}{name}": value for name, value in metrics.items()}}
        context.run.append_metrics({**line, f"{VALIDATION_PREFIX}seconds": round(seconds, 3)})
        if is_best:
            context.run.checkpoints.write_best(state.best)
        context.reporter.validated(line, is_best=is_best)


def _is_best(state: TrainingState, score: float) -> bool:
    return state.best is None or state.best.score is None or score > state.best.score
