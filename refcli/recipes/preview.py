"""The dry run: parameters, first batch, memory and time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import nn

from refcli.contracts.batch import Batch
from refcli.engine.measuring.memory import MemoryEstimate, estimate_memory
from refcli.engine.measuring.step_time import measure_step, step_seconds
from refcli.engine.measuring.utilisation import gemm_peak
from refcli.engine.objective import HasMasks, HasWork
from refcli.recipes.training import AnySettings, TrainingParts, missing_images

MAX_ACTIVATION_BYTES = 2_000_000_000
"""Activations of the samples on which a step is measured, on a CPU."""
STEPS = (0, 1)
"""Steps whose masked items are counted: an objective may mask patches in even steps and words in odd ones."""


def preview_training(parts: TrainingParts, settings: AnySettings, device: torch.device) -> list[str]:
    """Describe a run in lines; a few passes are measured.

    Args:
        parts: the objective is moved to `device` and its weights may change; the feed loads in this process.

    Raises:
        RefcliError: the first batch cannot be read.
    """
    return [
        *parts.notes,
        *missing_images(parts.data),
        f"samples: {len(parts.data.training):,} for training, {parts.data.num_validation:,} for validation",
        *preview_lines(parts, settings, device=device),
    ]


def preview_lines(parts: TrainingParts, settings: AnySettings, *, device: torch.device) -> list[str]:
    """The lines about parameters, the first batch, memory and time."""
    objective = parts.objective.to(device).train()
    for module in parts.frozen:
        module.requires_grad_(False).eval()
    with closing(parts.feed.batches(0)) as batches:
        batch = next(batches)
        before = time.perf_counter()
        next(batches)
        loading = time.perf_counter() - before
    memory = estimate_memory(objective, batch, optim=settings.optim, settings=settings.train, device=device)
    return [
        *_parameter_lines(objective, parts.named),
        *_batch_lines(objective, batch),
        *_memory_lines(memory, settings),
        *_time_lines(objective, batch, settings, memory, loading=loading, device=device),
        f"device: {device}, as one process; with more, each has its own batch",
    ]


def _parameter_lines(objective: nn.Module, parts: Mapping[str, nn.Module]) -> list[str]:
    lines = []
    for name, part in {**parts, "in all": objective}.items():
        parameters = list(part.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        note = "" if trained == total else f", {trained:,} of them trained" if trained else " (frozen)"
        lines.append(f"{name}: {total:,} parameters{note}")
    return lines


def _batch_lines(objective: nn.Module, batch: Batch) -> list[str]:
    words = int((~batch.token_is_pad).sum())
    lines = [
        f"first batch: images {tuple(batch.images.shape)}, token_ids {tuple(batch.token_ids.shape)} ({words} real), "
        f"masks {tuple(batch.targets.masks.shape)}, {int(batch.targets.exists.sum())} with a referent"
    ]
    if isinstance(objective, HasMasks):
        for step in STEPS:
            hidden = objective.num_masked(batch, step)
            lines.append(f"hidden in step {step}: " + ", ".join(f"{count:,} {what}" for what, count in hidden.items()))
    return lines


def _memory_lines(memory: MemoryEstimate, settings: AnySettings) -> list[str]:
    has_checkpoints = settings.model.tower.checkpoint_activations
    now = memory.checkpointed if has_checkpoints else memory.activations
    other = memory.activations if has_checkpoints else memory.checkpointed
    terms = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"state of {settings.optim.name}": memory.optimizer,
        "average": memory.average,
        "activations": now,
    }
    word = "without" if has_checkpoints else "with"
    return [
        f"memory: about {_gigabytes(memory.total(checkpointed=has_checkpoints))} = "
        + " + ".join(f"{_gigabytes(size)} {what}" for what, size in terms.items() if size),
        f"activations {word} model.tower.checkpoint_activations: {_gigabytes(other)}",
    ]


def _time_lines(
    objective: nn.Module,
    batch: Batch,
    settings: AnySettings,
    memory: MemoryEstimate,
    *,
    loading: float,
    device: torch.device,
) -> list[str]:
    if not isinstance(objective, HasWork):
        return []
    train = settings.train
    assert train.precision != "auto"  # resolved before
    most = len(batch.ids)
    if device.type == "cpu":
        most = max(1, min(most, most * MAX_ACTIVATION_BYTES // max(memory.activations, 1)))
    cost = measure_step(objective, batch, optim=settings.optim, settings=train, most=most, device=device)
    seconds = step_seconds(
        cost, loading=loading, accumulate=train.accumulate, workers=settings.data.workers, device=device
    )
    flops = objective.work(batch).flops
    peak = max(gemm_peak(device, train.precision), flops / cost.passes)
    workers = f"{settings.data.workers} {'process' if settings.data.workers == 1 else 'processes'} beside it"
    sample = f"measured on {cost.num_samples} of {len(batch.ids)} samples" + ", not compiled" * train.compile
    return [
        f"time: about {_duration(1000 * seconds)} per 1,000 steps, {_duration(train.steps * seconds)} in all, "
        f"validation not included ({sample})",
        f"a step: forward and backward {_duration(train.accumulate * cost.passes)}, update {_duration(cost.update)}, "
        f"loading {_duration(train.accumulate * loading)} in {workers if settings.data.workers else 'this process'}",
        f"arithmetic: {train.accumulate * flops / 1e9:,.1f} GFLOP a step at {flops / cost.passes / peak:.0%} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that matrix products reach in {train.precision}",
    ]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
