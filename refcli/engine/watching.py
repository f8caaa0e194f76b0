"""What is measured while training goes on: lines of metrics, and validations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from refcli.engine.averages import Averages
from refcli.engine.distributed import World
from refcli.engine.objective import HasWork, read_metrics
from refcli.engine.randomness import undisturbed_randomness
from refcli.engine.reporting import Reporter
from refcli.engine.run_dir import VALIDATION_PREFIX, RunDir
from refcli.engine.sharding import whole
from refcli.engine.state import Pointer, TrainingState
from refcli.engine.step import StepResult
from refcli.engine.stopping import failing_together
from refcli.engine.utilisation import gemm_peak

SCORE = "score"
"""The validation metric that chooses the best checkpoint; larger is better."""


def read_validations(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every validation in a run's metrics.jsonl, by step, ascending; empty without that file."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    validations: dict[int, dict[str, float]] = {}
    for line in (json.loads(text) for text in lines if text.endswith("}")):
        metrics = {
            name.removeprefix(VALIDATION_PREFIX): value
            for name, value in line.items()
            if name.startswith(VALIDATION_PREFIX)
        }
        if metrics:
            validations[int(line["step"])] = metrics
    return validations


class Watch:
    """Writes metrics.jsonl and tells the reporter. Every process calls every method; the main one writes.

    Args:
        precision: of the run's matrix products.
    """

    def __init__(self, run: RunDir, world: World, reporter: Reporter, *, precision: Literal["fp32", "bf16"]) -> None:
        self.run = run
        self.world = world
        self.reporter = reporter
        self.precision = precision
        self._averages = Averages()
        self._peak: float | None = None

    def add(self, result: StepResult, seconds: float) -> None:
        """Count one optimiser step."""
        self._averages.add(result.values)
        self._averages.add_time(seconds, waited=result.waited, num_samples=result.num_samples, work=result.work)

    def measure(self, state: TrainingState, *, lr: float) -> None:
        """Write one line of metrics: the means over the steps since the last line.

        Raises:
            TrainingError: it cannot be written.
        """
        self._averages.add(read_metrics(state.objective))
        if isinstance(state.objective, HasWork):
            known = self._peak or gemm_peak(self.world.device, self.precision)
            self._peak = max(known, self._averages.flops_per_second)  # other work may have slowed the measurement
        means = self._averages.line(self.world, gemm_peak=self._peak)
        line = {"step": state.step, **means, "lr": lr, "seconds": round(state.seconds, 3)}
        self._averages = Averages()
        with failing_together(self.world):
            if self.world.is_main:
                self.run.append_metrics(line)
        self.reporter.measured(line)

    def validate(self, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]) -> bool:
        """Validate the averaged model if there is one, else the objective; whether that is the run's best so far.

        Raises:
            RefcliError: of `validate`, or the line cannot be written.
        """
        model = whole(state.trained)
        is_best = False
        with failing_together(self.world):
            if self.world.is_main:
                is_best = self._validate_here(model, state, validate)
        state.validated = state.step
        return self.world.any(is_best)

    def has_stalled(self, state: TrainingState, patience: int | None) -> bool:
        """Whether the last `patience` validations have not improved on the best one; never if that is None."""
        if patience is None:
            return False
        best = state.best.step if state.best else 0
        since = [step for step in read_validations(self.run.path) if step > best] if self.world.is_main else []
        return self.world.any(len(since) >= patience)

    def _validate_here(
        self, model: nn.Module, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]
    ) -> bool:
        model.eval()
        before = time.perf_counter()
        with undisturbed_randomness(self.world.device), torch.inference_mode():
            metrics = validate(model)
        seconds = time.perf_counter() - before
        is_best = state.best is None or state.best.score is None or metrics[SCORE] > state.best.score
        if is_best:
            state.best = Pointer(state.step, metrics[SCORE])
        line = {"step": state.step, **{f"{VALIDATION_PREFIX}{name}": value for name, value in metrics.items()}}
        self.run.append_metrics({**line, f"{VALIDATION_PREFIX}seconds": round(seconds, 3)})
        self.reporter.validated(line, is_best=is_best)
        return is_best
