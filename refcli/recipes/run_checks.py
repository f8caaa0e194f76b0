"""What the user should know of a run before it begins or goes on."""

from __future__ import annotations

import torch

from refcli.config.load import read_yaml, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.engine.run_dir import RunDir
from refcli.engine.schedule import lr_factor
from refcli.inference.device import cpu_gains_from_bf16


def slow_precision(settings: FinetuneSettings | PretrainSettings, device: torch.device) -> list[str]:
    """What the user should know where bf16 would only cost time and accuracy."""
    if settings.train.precision == "fp32" or device.type != "cpu" or cpu_gains_from_bf16():
        return []
    return ["this CPU multiplies bf16 no faster than fp32: train.precision=fp32 would be at least as fast"]


def changed_schedule(run: RunDir, settings: FinetuneSettings | PretrainSettings) -> list[str]:
    """What the user should know where a resumed run is to have another length than before.

    Raises:
        ConfigError: the run's own settings cannot be read.
    """
    file, last = run.path / "run.yaml", run.checkpoints.pointer("last")
    if last is None or not file.is_file():
        return []
    before = validate(type(settings), read_yaml(file), where=str(file)).train.steps
    now, optim = settings.train.steps, settings.optim
    if before == now:
        return []
    rates = [
        optim.lr
        * lr_factor(last.step, total_steps=steps, warmup_steps=optim.warmup_steps, final_ratio=optim.final_lr_ratio)
        for steps in (before, now)
    ]
    return [
        f"train.steps changed from {before} to {now}: the learning rate follows the schedule of the new length, so at "
        f"step {last.step} it goes from {rates[0]:.3g} to {rates[1]:.3g} at once"
    ]
