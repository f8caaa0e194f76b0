"""The one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from torch import nn

from refcli.contracts.batch import Batch
from refcli.engine.checkpointing.resume import resume
from refcli.engine.checkpointing.state import BatchLayout, TrainingState
from refcli.engine.compiling import compile_parts, explain_compile_errors
from refcli.engine.context import TrainingContext
from refcli.engine.device import keep_freed_pages
from refcli.engine.distributed.sharding import unsharded
from refcli.engine.loading import explain_loading_errors
from refcli.engine.objective import has_static_graph
from refcli.engine.optimisation.moving_average import MovingAverage
from refcli.engine.optimisation.optimizer import build_optimizer, set_lr
from refcli.engine.optimisation.schedule import lr_factor
from refcli.engine.optimisation.step import StepResult, optimizer_step
from refcli.engine.reporting.metrics import MetricsLog
from refcli.engine.stopping import LoadingStalledError, StopSignals
from refcli.engine.validation import ValidationTracker


@dataclass(frozen=True)
class Feed:
    """The data of a run: training batches, and how to validate."""

    batches: Callable[[int], Generator[Batch, None, None]]
    """Endless batches for this process, given how many it has already had."""
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    """Metrics of a model in evaluation mode, including "score"."""
    signals: StopSignals = field(default_factory=StopSignals)
    """Watched during training; a validation that iterates its batches through them ends early."""


def train(
    objective: nn.Module,
    feed: Feed,
    context: TrainingContext,
    *,
    frozen: Sequence[nn.Module] = (),
    compiled: Sequence[nn.Module] = (),
) -> nn.Module:
    """Train until `train.steps` optimiser steps are done, from the run's last checkpoint if there is one.

    With `train.patience` training ends earlier: once that many validations in a row have not improved on the best.

    Args:
        objective: see `engine.objective.Objective`; it is moved to the world's device.
        frozen: its parts that get no gradient and stay in evaluation mode (no dropout, no drop-path).
        compiled: its parts to compile if `train.compile`; by default all of it.

    Returns:
        The averaged model if `train.ema_decay`, else `objective`; if that is sharded, an unsharded copy in the main
        process.

    Raises:
        TrainingError: a loss is not finite (the batches are recorded in the run directory), the run directory cannot be
            written, or compiling failed. If there are several processes, all of them raise.
        StoppedError: any process received SIGTERM, SIGUSR1 or SIGINT; the last complete step is saved.
    """
    settings, world = context.train, context.world
    assert settings.precision != "auto"
    if world.device.type == "cpu":
        keep_freed_pages()
    objective.to(world.device)
    for part in frozen:
        part.requires_grad_(False)
    average = _build_average(objective, frozen, context)
    if settings.compile:
        compile_parts(compiled or (objective,))
    is_static = has_static_graph(objective) and settings.accumulate == 1
    wrapped = world.wrap(objective, parallel=settings.parallel, static_graph=is_static)
    state = TrainingState(objective, build_optimizer(objective, context.optim), None)
    if average is not None:
        state.ema, state.frozen_names = average.module, average.frozen_names
    layout = BatchLayout(world.size, settings.batch_size, settings.accumulate)
    resume(state, layout, context)
    context.reporter.started(step=state.step, total=settings.steps)
    loop = _Loop(context, feed, wrapped, state, layout, average, tuple(frozen))
    with (
        feed.signals,
        closing(feed.batches(state.samples // layout.global_batch)) as batches,
        explain_loading_errors(),
        explain_compile_errors(),
    ):
        loop.run(batches)
    return unsharded(state.trained)


def _build_average(objective: nn.Module, frozen: Sequence[nn.Module], context: TrainingContext) -> MovingAverage | None:
    """The moving average of the objective, or None without `train.ema_decay`; sharded if the objective will be."""
    settings = context.train
    if settings.ema_decay is None:
        return None
    is_sharded = settings.parallel == "fsdp"
    average = MovingAverage(objective, decay=settings.ema_decay, frozen=frozen, is_shared=not is_sharded)
    if is_sharded:
        context.world.wrap(average.module, parallel="fsdp")
    return average


@dataclass
class _Loop:
    """Optimiser steps and what happens between them: metrics, checkpoints, validation and stopping."""

    context: TrainingContext
    feed: Feed
    wrapped: nn.Module
    """The objective as `World.wrap` returned it."""
    state: TrainingState
    layout: BatchLayout
    average: MovingAverage | None
    frozen: tuple[nn.Module, ...]

    def __post_init__(self) -> None:
        self.metrics = MetricsLog(self.context)
        self.validation = ValidationTracker(self.context)

    def run(self, batches: Generator[Batch, None, None]) -> None:
        """Train until the steps are done, patience is exhausted, or a signal stops the run."""
        settings, state = self.context.train, self.state
        self._set_train_mode()
        if self._is_validation_due():  # an earlier process saved this step and was stopped before the validation
            self._validate()
            self._stop_if(self._is_signalled())
        has_stalled = self.validation.has_stalled(state)
        while state.step < settings.steps and not has_stalled:
            factor = lr_factor(
                state.step,
                total_steps=settings.steps,
                warmup_steps=self.context.optim.warmup_steps,
                final_ratio=self.context.optim.final_lr_ratio,
            )
            set_lr(state.optimizer, factor)
            self._step(batches)
            is_end = state.step == settings.steps
            if is_end or state.step % settings.log_every == 0:
                self.metrics.write(state, lr=self.context.optim.lr * factor)
            stop, is_validation_due = self._is_signalled(), self._is_validation_due()
            if stop or is_end or is_validation_due or state.step % settings.save_every == 0:
                self._save()  # before the validation, which may fail or take long
                self.context.reporter.saved(state.step)
            if is_validation_due and not stop:
                self._validate()
                has_stalled = self.validation.has_stalled(state)
                stop = self._is_signalled()
            self._stop_if(stop)
        if has_stalled:
            self.context.reporter.noted(
                f"ended after step {state.step}: {settings.patience} validations have not improved on the best"
            )

    def _step(self, batches: Generator[Batch, None, None]) -> None:
        """One optimiser step and its bookkeeping."""
        state, before = self.state, time.perf_counter()
        result = self._optimizer_step(batches)
        state.step += 1
        state.samples += self.layout.global_batch * self.layout.accumulate
        if self.average is not None:
            self.average.update(state.objective, step=state.step)
        seconds = time.perf_counter() - before
        state.seconds += seconds
        self.metrics.add(result, seconds)
        self.context.reporter.stepped(state.step)

    def _optimizer_step(self, batches: Generator[Batch, None, None]) -> StepResult:
        state, world = self.state, self.context.world
        try:
            return optimizer_step(
                self.wrapped, state.objective, batches, state.optimizer, step=state.step, context=self.context
            )
        except LoadingStalledError:
            if world.size > 1:  # the other processes wait inside this step
                raise
            if state.step not in self.context.run.checkpoints.steps():
                self._save()
            self._stop_if(True)
            raise

    def _save(self) -> None:
        self.context.run.checkpoints.save(self.state, layout=self.layout, world=self.context.world)

    def _is_validation_due(self) -> bool:
        """Whether a validation is due after this step and has not run yet."""
        settings, state = self.context.train, self.state
        if self.feed.validate is None or state.validated == state.step:
            return False
        is_due = settings.validate_every is not None and state.step % settings.validate_every == 0
        return is_due or state.step == settings.steps

    def _validate(self) -> None:
        assert self.feed.validate is not None
        self.validation.run(self.state, self.feed.validate)
        self._set_train_mode()

    def _set_train_mode(self) -> None:
        self.state.objective.train()
        for part in self.frozen:
            part.eval()

    def _is_signalled(self) -> bool:
        """Whether any process has received a stop signal."""
        return self.context.world.any(self.feed.signals.received is not None)

    def _stop_if(self, stop: bool) -> None:
        if stop:
            self.feed.signals.raise_stopped(self.state.step)
