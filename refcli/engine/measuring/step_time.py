"""The time of a training step on this machine, from measurements of its parts."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from refcli.config.schema import OptimSettings, TrainSettings
from refcli.contracts.batch import Batch
from refcli.engine.measuring.memory import first_samples
from refcli.engine.optimisation.optimizer import build_optimizer

STEPS = (0, 1)
"""Even and odd steps of an objective may differ; the mean counts."""
BUDGET_SECONDS = 6.0
"""Time for the measured passes, after one for warming up; a single pass may take longer."""
REPEATS = 5
MAX_UPDATED_PARAMETERS = 30_000_000
"""Above this the optimiser is measured on a smaller matrix, to save the memory of its state."""
PROBE_SIDE = 2048


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step in this process."""

    passes: float
    """Forward and backward of one whole batch."""
    update: float
    """Clipping, optimiser and average."""
    num_samples: int
    """Samples on which the passes were measured; for a larger batch they are extrapolated."""


def measure_step(
    objective: nn.Module,
    batch: Batch,
    *,
    optim: OptimSettings,
    settings: TrainSettings,
    most: int,
    device: torch.device,
) -> StepTime:
    """Measure a training step of an objective on `device`; its weights change.

    Args:
        most: the number of samples that fit into memory.
    """
    size = len(batch.ids)
    few = first_samples(batch, 1)
    _pass_seconds(objective, few, settings, device)
    one = _pass_seconds(objective, few, settings, device)
    count = min(size, most, max(1, int(BUDGET_SECONDS / one)))
    several = one
    while count > 1:
        some = first_samples(batch, count)
        try:
            several = _pass_seconds(objective, some, settings, device)
            repeats = min(REPEATS, int(BUDGET_SECONDS / several))
            several = median([several, *(_pass_seconds(objective, some, settings, device) for _ in range(repeats))])
            break
        except torch.OutOfMemoryError:
            count //= 2
    slope = max(several - one, 0.0) / (count - 1) if count > 1 else one
    update = _update_seconds(objective, optim, settings, device)
    return StepTime(passes=several + slope * (size - count), update=update, num_samples=count)


def step_seconds(measured: StepTime, *, loading: float, accumulate: int, workers: int, device: torch.device) -> float:
    """Seconds of an optimiser step while data is loaded in the background.

    Args:
        loading: seconds that one process takes to load a batch.
        workers: number of loading processes; 0 loads between the passes.
    """
    busy, loads = accumulate * measured.passes + measured.update, accumulate * loading
    if not workers:
        return busy + loads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own_threads = min(torch.get_num_threads(), cores) if device.type == "cpu" else 1
    return max(busy, loads / min(workers, cores), (busy * own_threads + loads) / cores)


def _pass_seconds(objective: nn.Module, batch: Batch, settings: TrainSettings, device: torch.device) -> float:
    """Mean over `STEPS` of a forward and a backward pass; the gradients stay."""
    here = batch.to(device)
    spent = 0.0
    for step in STEPS:
        objective.zero_grad(set_to_none=True)
        _synchronise(device)
        before = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            losses: dict[str, Tensor] = objective(here, step)
        if losses:
            torch.autograd.backward(torch.stack([term.float() for term in losses.values()]).sum())
        _synchronise(device)
        spent += time.perf_counter() - before
    return max(spent / len(STEPS), 1e-9)


def _update_seconds(objective: nn.Module, optim: OptimSettings, settings: TrainSettings, device: torch.device) -> float:
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    module, scale = objective, 1.0
    if trained > MAX_UPDATED_PARAMETERS:
        objective.zero_grad(set_to_none=True)
        module = nn.Linear(PROBE_SIDE, PROBE_SIDE, bias=False, device=device)
        scale = trained / module.weight.numel()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(module, optim)
    averages = [parameter.detach().clone() for parameter in parameters] if settings.ema_decay is not None else []
    times = []
    for _ in range(3):  # the first one creates the optimiser's state
        _synchronise(device)
        before = time.perf_counter()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if averages:
            torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 0.1)
        _synchronise(device)
        times.append(time.perf_counter() - before)
    return scale * min(times)


def _synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
