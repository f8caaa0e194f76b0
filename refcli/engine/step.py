"""One optimiser step: forward and backward over the accumulated batches, clip, update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from refcli.config.schema import TrainSettings
from refcli.contracts.batch import Batch
from refcli.engine.run_dir import RunDir
from refcli.errors import TrainingError


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step tells."""

    values: dict[str, float]
    """Mean of each loss term over the accumulated batches, their sum as `loss`, the gradient norm before clipping."""
    num_samples: int
    waited: float
    """Seconds spent waiting for data."""


def optimizer_step(
    wrapped: nn.Module,
    batches: Iterator[Batch],
    optimizer: Optimizer,
    *,
    step: int,
    settings: TrainSettings,
    clip_grad_norm: float | None,
    device: torch.device,
    run: RunDir,
) -> StepResult:
    """Train on the next `settings.accumulate` batches.

    Raises:
        TrainingError: a loss or the gradient is not finite; the weights are untouched and the batch is recorded.
    """
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    ids: tuple[str, ...] = ()
    waited = 0.0
    for part in range(settings.accumulate):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        ids += batch.ids
        with contextlib.ExitStack() as stack:
            if isinstance(wrapped, DistributedDataParallel) and part + 1 < settings.accumulate:
                stack.enter_context(wrapped.no_sync())
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                losses = wrapped(batch.to(device), step)
            loss = torch.stack([term.float() for term in losses.values()]).sum()
            values = dict(
                zip(losses, torch.stack([term.detach().float() for term in losses.values()]).tolist(), strict=True)
            )
            if not all(math.isfinite(value) for value in values.values()):
                _fail("a loss is not finite", step=step, ids=batch.ids, values=values, run=run)
            torch.autograd.backward(loss / settings.accumulate)
        for name, value in {**values, "loss": sum(values.values())}.items():
            sums[name] = sums.get(name, 0.0) + value / settings.accumulate
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    limit = math.inf if clip_grad_norm is None else clip_grad_norm
    sums["grad_norm"] = float(nn.utils.clip_grad_norm_(parameters, limit))
    if not math.isfinite(sums["grad_norm"]):
        _fail("the gradient is not finite", step=step, ids=ids, values=sums, run=run)
    optimizer.step()
    return StepResult(values=sums, num_samples=len(ids), waited=waited)


def _fail(what: str, *, step: int, ids: tuple[str, ...], values: dict[str, float], run: RunDir) -> None:
    terms = ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))
    raise TrainingError(
        f"{what} at step {step}: {terms}",
        where=str(run.write_non_finite(step=step, ids=ids, losses=values)),
        hint="the file lists the samples of the batch; try a smaller optim.lr or train.precision=fp32",
    )
