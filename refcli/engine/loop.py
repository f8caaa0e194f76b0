"""The one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from torch import nn

from refcli.config.schema import OptimSettings, TrainSettings
from refcli.contracts.batch import Batch
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.state import BatchLayout, TrainingState, seed_generators
from refcli.engine.compiling import compile_parts, explain_compile_errors
from refcli.engine.device import keep_freed_pages
from refcli.engine.distributed.sharding import whole
from refcli.engine.distributed.world import World
from refcli.engine.loading import explain_loading_errors
from refcli.engine.optimisation.moving_average import MovingAverage
from refcli.engine.optimisation.optimizer import build_optimizer, set_lr
from refcli.engine.optimisation.schedule import lr_factor
from refcli.engine.optimisation.step import optimizer_step
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.reporting.watching import Watch
from refcli.engine.stopping import LoadingStalledError, StopSignals


@dataclass(frozen=True)
class Feed:
    """Where batches come from, and how the model is watched."""

    batches: Callable[[int], Generator[Batch, None, None]]
    """Endless batches for this process, given how many it has already had."""
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    """Metrics of a model in evaluation mode, a "score" among them."""
    signals: StopSignals = field(default_factory=StopSignals)
    """Noted while training goes on; a validation that goes through its batches by them ends early."""


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
    static_graph: bool = False,
) -> nn.Module:
    """Train for `settings.steps` optimiser steps, going on from the run's last checkpoint if there is one.

    With `settings.patience` it ends earlier, when so many validations have not improved on the best one.

    Args:
        objective: see `engine.objective.Objective`; it is moved to the world's device.
        frozen: its parts that get no gradient and stay in evaluation mode (no dropout, no drop-path).
        compiled: its parts to compile if `settings.compile`; by default the whole.
        static_graph: every step uses the same of its parameters, which spares several processes a search.

    Returns:
        The averaged model if `settings.ema_decay`, else `objective`; of a sharded one a whole copy in the main process.

    Raises:
        TrainingError: a loss is not finite (the batches are recorded in the run directory), the run directory cannot be
            written, or compiling failed. In several processes, all of them raise.
        StoppedError: SIGTERM, SIGUSR1 or SIGINT came to any process; the last whole step is saved.
    """
    assert settings.precision != "auto"  # the recipes decide it
    if world.device.type == "cpu":
        keep_freed_pages()
    objective.to(world.device)
    for part in frozen:
        part.requires_grad_(False)
    average = _averaged(objective, frozen, settings, world) if settings.ema_decay is not None else None
    if settings.compile:
        compile_parts(compiled or (objective,))
    is_static = static_graph and settings.accumulate == 1
    wrapped = world.wrap(objective, parallel=settings.parallel, static_graph=is_static)
    state = TrainingState(objective, build_optimizer(objective, optim), None)
    if average is not None:
        state.ema, state.frozen_names = average.module, average.frozen_names
    layout = BatchLayout(world.size, settings.batch_size, settings.accumulate)
    watch = Watch(run, world, reporter, precision=settings.precision)
    _take_up(state, layout, seed=settings.seed, run=run, watch=watch, reporter=reporter)
    reporter.started(step=state.step, total=settings.steps)

    _train_mode(objective, frozen)
    batches = feed.batches(state.samples // layout.global_batch)
    with feed.signals as signals, closing(batches), explain_loading_errors(), explain_compile_errors():
        if feed.validate is not None and _is_to_be_validated(state, settings):  # something came before it
            watch.validate(state, feed.validate)
            _train_mode(objective, frozen)
            if world.any(signals.received is not None):
                signals.leave(state.step)
        has_stalled = watch.has_stalled(state, settings.patience)
        while state.step < settings.steps and not has_stalled:
            before = time.perf_counter()
            factor = lr_factor(
                state.step,
                total_steps=settings.steps,
                warmup_steps=optim.warmup_steps,
                final_ratio=optim.final_lr_ratio,
            )
            set_lr(state.optimizer, factor)
            try:
                result = optimizer_step(
                    wrapped,
                    objective,
                    batches,
                    state.optimizer,
                    step=state.step,
                    settings=settings,
                    clip_grad_norm=optim.clip_grad_norm,
                    world=world,
                    run=run,
                )
            except LoadingStalledError:
                if world.size > 1:  # the others wait in this step
                    raise
                if state.step not in run.checkpoints.steps():
                    run.checkpoints.save(state, layout=layout, world=world)
                signals.leave(state.step)
            state.step += 1
            state.samples += layout.global_batch * layout.accumulate
            if average is not None:
                average.update(objective, step=state.step)
            seconds = time.perf_counter() - before
            state.seconds += seconds
            watch.add(result, seconds)
            reporter.stepped(state.step)

            is_end = state.step == settings.steps
            if is_end or state.step % settings.log_every == 0:
                watch.measure(state, lr=optim.lr * factor)
            stop = world.any(signals.received is not None)
            validate = feed.validate if _is_to_be_validated(state, settings) else None
            if stop or is_end or validate is not None or state.step % settings.save_every == 0:
                run.checkpoints.save(state, layout=layout, world=world)  # first: the validation may fail or take long
                reporter.saved(state.step)
            if validate is not None and not stop:
                watch.validate(state, validate)
                has_stalled = watch.has_stalled(state, settings.patience)
                _train_mode(objective, frozen)
                stop = world.any(signals.received is not None)
            if stop:
                signals.leave(state.step)
    if has_stalled:
        reporter.noted(f"ended after step {state.step}: {settings.patience} validations have not improved on the best")
    return whole(state.trained)


def _averaged(
    objective: nn.Module, frozen: Sequence[nn.Module], settings: TrainSettings, world: World
) -> MovingAverage:
    """The average of the objective, spread over processes as the objective will be."""
    assert settings.ema_decay is not None
    is_sharded = settings.parallel == "fsdp"
    average = MovingAverage(objective, decay=settings.ema_decay, frozen=frozen, is_shared=not is_sharded)
    if is_sharded:
        world.wrap(average.module, parallel="fsdp")
    return average


def _take_up(
    state: TrainingState, layout: BatchLayout, *, seed: int, run: RunDir, watch: Watch, reporter: Reporter
) -> None:
    """Seed the random generators, and go on from the run's last checkpoint if there is one.

    A world of the same size goes on exactly. Another one goes on at the same sample, or up to one global batch before
    it, with random generators seeded anew.
    """
    world = watch.world
    pointer = run.checkpoints.pointer("last")
    last = world.gather(pointer.step if pointer else None)[0]  # as the main process sees the disk
    seed_generators(seed + world.rank + world.size * (last or 0))
    if last is not None:
        before = run.checkpoints.load(last, state, world=world)
        state.samples -= state.samples % layout.global_batch
        if before.processes != layout.processes:
            reporter.noted(
                f"the number of processes changed from {before.processes} to {layout.processes}: training goes on at "
                f"sample {state.samples} with {layout.global_batch * layout.accumulate} samples per step instead of "
                f"{before.global_batch * before.accumulate}, and draws new random numbers"
            )
        watch.recall(state)
    if world.is_main:
        run.drop_metrics_after(state.step, validated=state.validated)


def _is_to_be_validated(state: TrainingState, settings: TrainSettings) -> bool:
    """Whether a validation is due after the step just done, and has not been made."""
    is_due = settings.validate_every is not None and state.step % settings.validate_every == 0
    return (is_due or state.step == settings.steps) and state.validated != state.step


def _train_mode(objective: nn.Module, frozen: Sequence[nn.Module]) -> None:
    objective.train()
    for part in frozen:
        part.eval()
