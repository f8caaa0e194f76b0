"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn

from refcli.config.schema import OptimSettings, TrainSettings
from refcli.contracts.batch import Batch
from refcli.engine.allocator import keep_freed_pages
from refcli.engine.averages import Averages
from refcli.engine.checkpoint import TrainingState
from refcli.engine.compiling import compile_errors_told, compile_parts
from refcli.engine.distributed import World
from refcli.engine.optim import build_optimizer, set_lr
from refcli.engine.randomness import seed_generators, undisturbed_randomness
from refcli.engine.reporting import Reporter
from refcli.engine.run_dir import RunDir
from refcli.engine.schedule import lr_factor
from refcli.engine.step import optimizer_step
from refcli.engine.stopping import StopSignals

EMA_WARMUP_POWER = 2 / 3
"""The average's decay after n steps is 1 - (1 + n)^-power until that exceeds `ema_decay`."""
SCORE = "score"
"""The validation metric that chooses the best checkpoint; larger is better."""


@dataclass(frozen=True)
class Feed:
    """Where batches come from, and how the model is watched."""

    batches: Callable[[int], Generator[Batch, None, None]]
    """Endless batches for this process, given how many it has already had."""
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    """Metrics of a model in evaluation mode, a "score" among them."""


def train(
    objective: nn.Module,
    feed: Feed,
    *,
    optim: OptimSettings,
    settings: TrainSettings,
    run: RunDir,
    world: World,
    reporter: Reporter,
    frozen: Sequence[nn.Module] = (),
    compiled: Sequence[nn.Module] = (),
) -> nn.Module:
    """Train for `settings.steps` optimiser steps, going on from the run's last checkpoint if there is one.

    Args:
        objective: see `engine.objective.Objective`; it is moved to the world's device.
        frozen: its parts that get no gradient and stay in evaluation mode (no dropout, no drop-path).
        compiled: its parts to compile if `settings.compile`; by default the whole.

    Returns:
        The averaged model if `settings.ema_decay`, else `objective`.

    Raises:
        TrainingError: a loss is not finite (the batch is recorded in the run directory), or compiling failed.
        StoppedError: SIGTERM or SIGINT came; the last whole step is saved.
    """
    if world.device.type == "cpu":
        keep_freed_pages()
    objective.to(world.device)
    for part in frozen:
        part.requires_grad_(False)
    average = None
    if settings.ema_decay is not None:
        average = ModelEmaV3(objective, decay=settings.ema_decay, use_warmup=True, warmup_power=EMA_WARMUP_POWER)
    state = TrainingState(objective, build_optimizer(objective, optim), average.module if average else None)
    if settings.compile:
        compile_parts(compiled or (objective,))
    wrapped = world.wrap(objective)
    last = run.checkpoints.pointer("last")
    batches = feed.batches(last.step * settings.accumulate if last else 0)
    seed_generators(settings.seed + world.rank)
    if last:
        run.checkpoints.load(last.step, state)
        run.forget_metrics_after(state.step)
        if not world.is_main:  # the saved generators are those of the main process
            seed_generators(settings.seed + world.rank + world.size * state.step)
    reporter.started(step=state.step, total=settings.steps)

    averages = Averages()
    _train_mode(objective, frozen)
    with StopSignals() as signals, closing(batches), compile_errors_told():
        while state.step < settings.steps:
            before = time.perf_counter()
            factor = lr_factor(
                state.step,
                total_steps=settings.steps,
                warmup_steps=optim.warmup_steps,
                final_ratio=optim.final_lr_ratio,
            )
            set_lr(state.optimizer, factor)
            result = optimizer_step(
                wrapped,
                batches,
                state.optimizer,
                step=state.step,
                settings=settings,
                clip_grad_norm=optim.clip_grad_norm,
                device=world.device,
                run=run,
            )
            state.step += 1
            if average is not None:
                average.update(objective, step=state.step)
            seconds = time.perf_counter() - before
            state.seconds += seconds
            averages.add(result.values)
            averages.add_time(seconds, waited=result.waited, num_samples=result.num_samples)
            reporter.stepped(state.step)

            is_end = state.step == settings.steps
            if is_end or state.step % settings.log_every == 0:
                _measure(averages, state, lr=optim.lr * factor, run=run, world=world, reporter=reporter)
                averages = Averages()
            stop = world.any(signals.received is not None)
            is_due = settings.validate_every is not None and state.step % settings.validate_every == 0
            best_score = None
            if feed.validate is not None and (is_end or is_due) and not stop:
                if world.is_main:
                    best_score = _validate(state, feed.validate, run=run, reporter=reporter)
                _train_mode(objective, frozen)
            if world.is_main and (stop or is_end or best_score is not None or state.step % settings.save_every == 0):
                run.checkpoints.save(state)
                if best_score is not None:
                    run.checkpoints.mark_best(state.step, best_score)
                reporter.saved(state.step)
            world.wait()
            if stop:
                signals.leave(state.step)
    return state.objective if state.ema is None else state.ema


def _train_mode(objective: nn.Module, frozen: Sequence[nn.Module]) -> None:
    objective.train()
    for part in frozen:
        part.eval()


def _measure(
    averages: Averages, state: TrainingState, *, lr: float, run: RunDir, world: World, reporter: Reporter
) -> None:
    """Write one line of metrics: the means since the last line."""
    line = {"step": state.step, **averages.line(world), "lr": lr, "seconds": round(state.seconds, 3)}
    if world.is_main:
        run.append_metrics(line)
    reporter.measured(line)


def _validate(
    state: TrainingState, validate: Callable[[nn.Module], dict[str, float]], *, run: RunDir, reporter: Reporter
) -> float | None:
    """Validate the averaged model if there is one; returns its score if that is the run's best so far."""
    model = state.objective if state.ema is None else state.ema
    model.eval()
    before = time.perf_counter()
    with undisturbed_randomness(), torch.inference_mode():
        metrics = validate(model)
    seconds = time.perf_counter() - before
    best = run.checkpoints.pointer("best")
    is_best = metrics[SCORE] > (best.score if best and best.score is not None else -math.inf)
    line = {"step": state.step, **{f"validation/{name}": value for name, value in metrics.items()}}
    run.append_metrics({**line, "validation/seconds": round(seconds, 3)})
    reporter.validated(line, is_best=is_best)
    return metrics[SCORE] if is_best else None
