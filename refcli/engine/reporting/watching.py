"""What is measured while training goes on: lines of metrics, and validations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from refcli.engine.checkpointing.run_dir import VALIDATION_PREFIX, RunDir
from refcli.engine.checkpointing.state import Pointer, TrainingState, preserve_rng_state
from refcli.engine.distributed.sharding import whole
from refcli.engine.distributed.world import World
from refcli.engine.loading import explain_loading_errors
from refcli.engine.measuring.utilisation import gemm_peak
from refcli.engine.objective import HasWork, read_metrics
from refcli.engine.optimisation.step import StepResult
from refcli.engine.reporting.averages import Averages
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.stopping import ValidationStoppedError, failing_together

LARGEST = sys.float_info.max
SCORE = "score"
"""The validation metric that chooses the best checkpoint; larger is better."""


def read_validations(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every validation in a run's metrics.jsonl, by step, ascending; empty without that file."""
    validations: dict[int, dict[str, float]] = {}
    for line in RunDir(run).metrics():
        metrics = {
            name.removeprefix(VALIDATION_PREFIX): float(value)
            for name, value in line.items()
            if name.startswith(VALIDATION_PREFIX) and isinstance(value, int | float) and abs(value) <= LARGEST
        }
        if metrics:
            validations[line["step"]] = metrics
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

    def validate(self, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Validate the averaged model if there is one, else the objective; note it if that is the run's best so far.

        The checkpoint of this step is on disk already. A validation that a signal breaks off leaves no trace, so that a
        resumed run makes it.

        Raises:
            RefcliError: of `validate`, or the line cannot be written.
        """
        model = whole(state.trained)
        is_done = True
        with failing_together(self.world), explain_loading_errors():
            if self.world.is_main:
                try:
                    self._validate_here(model, state, validate)
                except ValidationStoppedError:
                    is_done = False
        if not self.world.any(not is_done):
            state.validated = state.step

    def recall(self, state: TrainingState) -> None:
        """Let the state of a resumed run know of the validation that was made after its checkpoint had been saved."""
        made = read_validations(self.run.path).get(state.step, {}) if self.world.is_main else {}
        score = self.world.gather(made.get(SCORE))[0]
        if score is None or state.validated == state.step:
            return
        state.validated = state.step
        if self._is_best(state, score):
            state.best = Pointer(state.step, score)
            if self.world.is_main:
                self.run.checkpoints.write_best(state.best)

    def has_stalled(self, state: TrainingState, patience: int | None) -> bool:
        """Whether the last `patience` validations have not improved on the best one; never if that is None."""
        if patience is None:
            return False
        best = state.best.step if state.best else 0
        since = [step for step in read_validations(self.run.path) if step > best] if self.world.is_main else []
        return self.world.any(len(since) >= patience)

    def _validate_here(
        self, model: nn.Module, state: TrainingState, validate: Callable[[nn.Module], dict[str, float]]
    ) -> None:
        model.eval()
        before = time.perf_counter()
        with preserve_rng_state(self.world.device), torch.inference_mode():
            metrics = validate(model)
        seconds = time.perf_counter() - before
        is_best = self._is_best(state, metrics[SCORE])
        if is_best:
            state.best = Pointer(state.step, metrics[SCORE])
        line = {"step": state.step, **{f"{VALIDATION_PREFIX}{name}": value for name, value in metrics.items()}}
        self.run.append_metrics({**line, f"{VALIDATION_PREFIX}seconds": round(seconds, 3)})
        if is_best:
            self.run.checkpoints.write_best(state.best)
        self.reporter.validated(line, is_best=is_best)

    @staticmethod
    def _is_best(state: TrainingState, score: float) -> bool:
        return state.best is None or state.best.score is None or score > state.best.score
