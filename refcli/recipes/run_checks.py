"""What is decided and what is reported before a run begins or goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch

from refcli.config.load import read_yaml, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.device import resolve_device
from refcli.engine.distributed.world import World
from refcli.engine.optimisation.schedule import lr_factor
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.stopping import failing_together
from refcli.inference.device import cpu_gains_from_bf16, gpu_has_bf16
from refcli.recipes.restarts import takes_over

AUTO = "auto"
WHOLE_RUN = ""
"""In place of a stage's name."""
Precision = Literal["fp32", "bf16"]
S = TypeVar("S", FinetuneSettings, PretrainSettings)


def settle_precision(settings: S, world: World, out: Path, *, resume: bool, reporter: Reporter) -> S:
    """The settings with what `train.precision: auto` stands for, the same in every process.

    A run that goes on keeps the precision that its run.yaml states.

    Raises:
        ConfigError: the settings of the run that goes on cannot be read.
    """
    if AUTO not in stated_precisions(settings).values():
        return settings
    chosen: dict[str, str] = {}
    with failing_together(world):
        if world.is_main:
            file = out / "run.yaml"
            if (resume or takes_over(out)) and file.is_file():
                chosen = stated_precisions(validate(type(settings), read_yaml(file), where=str(file)))
            if chosen.get(WHOLE_RUN, AUTO) == AUTO:
                chosen[WHOLE_RUN], reason = precision_on(world.device)
                reporter.noted(f"train.precision=auto is {chosen[WHOLE_RUN]}: {reason}")
    return with_precision(settings, world.gather(chosen)[0])


def settled_for_preview(settings: S) -> tuple[S, list[str]]:
    """The settings with what `train.precision: auto` stands for on this machine, and a line that says so."""
    if AUTO not in stated_precisions(settings).values():
        return settings, []
    chosen, reason = precision_on(resolve_device(settings.train.device))
    return with_precision(settings, {WHOLE_RUN: chosen}), [f"train.precision=auto is {chosen}: {reason}"]


def precision_on(device: torch.device) -> tuple[Precision, str]:
    """What `train.precision: auto` stands for on a device, and the reason."""
    if device.type == "cuda":
        return ("bf16", "this GPU has it") if gpu_has_bf16() else ("fp32", "this GPU has no bf16 of its own")
    if device.type != "cpu":
        return "fp32", f"bf16 is not used on {device.type} unless asked for"
    if cpu_gains_from_bf16():
        return "bf16", "this CPU multiplies it faster than fp32"
    return "fp32", "this CPU multiplies bf16 no faster"


def stated_precisions(settings: FinetuneSettings | PretrainSettings) -> dict[str, str]:
    """What the settings say of the precision of the whole run, and of stages that have their own."""
    stages = settings.stages if isinstance(settings, FinetuneSettings) else {}
    own = {name: str(stage.train["precision"]) for name, stage in stages.items() if "precision" in stage.train}
    return {WHOLE_RUN: settings.train.precision, **own}


def with_precision(settings: S, chosen: Mapping[str, str]) -> S:
    """The settings with these precisions wherever they say `auto`; a stage without one has that of the whole run."""
    update: dict[str, object] = {}
    if settings.train.precision == AUTO:
        update["train"] = settings.train.model_copy(update={"precision": chosen[WHOLE_RUN]})
    if isinstance(settings, FinetuneSettings):
        stages = dict(settings.stages)
        for name, stage in settings.stages.items():
            if stage.train.get("precision") == AUTO:
                precision = chosen.get(name, chosen[WHOLE_RUN])
                stages[name] = stage.model_copy(update={"train": {**stage.train, "precision": precision}})
        update["stages"] = stages
    return settings.model_copy(update=update)


def slow_precision(settings: FinetuneSettings | PretrainSettings, device: torch.device) -> list[str]:
    """What the user should know where bf16 would only cost time and accuracy."""
    if settings.train.precision == "fp32":
        return []
    if device.type == "cuda" and not gpu_has_bf16():
        return ["this GPU has no bf16 of its own and emulates it slowly: train.precision=fp32 would be faster"]
    if device.type != "cpu" or cpu_gains_from_bf16():
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
