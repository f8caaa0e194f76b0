"""One optimiser step: forward and backward over the accumulated batches, clip, update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from refcli.contracts.batch import Batch
from refcli.engine.checkpointing.run_dir import BadBatch
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.world import no_gradient_sync
from refcli.engine.objective import BeginsSteps, work_of
from refcli.errors import ConfigError, TrainingError
from refcli.model.flops import Work


@dataclass(frozen=True)
class StepResult:
    """The measurements of one optimiser step in this process."""

    values: dict[str, float]
    """Mean of each loss term over the accumulated batches, their sum as `loss`, the gradient norm before clipping."""
    num_samples: int
    waited: float
    """Seconds spent waiting for data."""
    work: Work
    """Tokens and FLOPs of the samples."""


def optimizer_step(
    wrapped: nn.Module,
    objective: nn.Module,
    batches: Iterator[Batch],
    optimizer: Optimizer,
    *,
    step: int,
    context: TrainingContext,
) -> StepResult:
    """Train on the next `train.accumulate` batches.

    Args:
        wrapped: `objective` as `World.wrap` returned it.

    Raises:
        TrainingError: a loss or the gradient is not finite in any process. All of them raise, before the weights
            change, and the batches are recorded.
    """
    settings, world = context.train, context.world
    optimizer.zero_grad(set_to_none=True)
    if isinstance(objective, BeginsSteps):
        objective.begin_step(step)
    sums: dict[str, float] = {}
    ids: tuple[str, ...] = ()
    waited = 0.0
    work = Work()
    for part in range(settings.accumulate):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        ids += batch.ids
        work += work_of(objective, batch)
        with contextlib.ExitStack() as stack:
            if part + 1 < settings.accumulate:
                stack.enter_context(no_gradient_sync(wrapped))
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                losses = wrapped(batch.to(world.device), step)
            if not losses:
                raise ConfigError("there is no loss to learn from: every weight is 0", where="loss_weights")
            terms = torch.stack([term.float() for term in losses.values()])
            values = dict(zip(losses, terms.detach().tolist(), strict=True))
            if world.any(not _all_finite(values)):
                _raise_non_finite("a loss is not finite", step=step, ids=batch.ids, values=values, context=context)
            torch.autograd.backward(terms.sum() / settings.accumulate)
        for name, value in {**values, "loss": sum(values.values())}.items():
            sums[name] = sums.get(name, 0.0) + value / settings.accumulate
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    max_norm = context.optim.clip_grad_norm
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    sums["grad_norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(sums["grad_norm"]):  # the same number in every process
        _raise_non_finite("the gradient is not finite", step=step, ids=ids, values=sums, context=context)
    optimizer.step()
    return StepResult(values=sums, num_samples=len(ids), waited=waited, work=work)


def _all_finite(values: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in values.values())


def _raise_non_finite(
    what: str, *, step: int, ids: tuple[str, ...], values: dict[str, float], context: TrainingContext
) -> None:
    """Record the batches of the processes that have a value that is not finite, and raise in all processes."""
    world, run = context.world, context.run
    everywhere = [BadBatch(process, *part) for process, part in enumerate(world.gather((values, ids)))]
    bad = [batch for batch in everywhere if not _all_finite(batch.losses)]
    if world.is_main:
        run.write_non_finite(step=step, batches=bad)
    terms = ", ".join(f"{name}={value}" for name, value in bad[0].losses.items() if not math.isfinite(value))
    raise TrainingError(
        f"{what} at step {step}: {terms}",
        where=str(run.non_finite_file(step)),
        hint="the file lists the samples of the batch; try a smaller optim.lr or train.precision=fp32",
    )
