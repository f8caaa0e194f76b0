"""The precision of a run: resolve `train.precision: auto`, and warn if bf16 is slow on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch

from refcli.config.load import read_yaml, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.engine.distributed.world import World
from refcli.engine.stopping import failing_together
from refcli.inference.device import cpu_gains_from_bf16, gpu_has_bf16

AUTO = "auto"
WHOLE_RUN = ""
"""In place of a stage's name."""
Precision = Literal["fp32", "bf16"]
S = TypeVar("S", FinetuneSettings, PretrainSettings)


def resolve_precision(settings: S, world: World, *, resumed: Path | None = None) -> tuple[S, list[str]]:
    """The settings with every `train.precision: auto` replaced, the same in every process, and notes for the user.

    Args:
        resumed: the run.yaml of the run that is resumed; it keeps its precision.

    Raises:
        ConfigError: that file cannot be read.
    """
    if AUTO not in stated_precisions(settings).values():
        return settings, []
    chosen: dict[str, str] = {}
    notes: list[str] = []
    with failing_together(world):
        if world.is_main:
            if resumed is not None:
                chosen = stated_precisions(validate(type(settings), read_yaml(resumed), where=str(resumed)))
            if chosen.get(WHOLE_RUN, AUTO) == AUTO:
                chosen[WHOLE_RUN], reason = precision_on(world.device)
                notes.append(f"train.precision=auto is {chosen[WHOLE_RUN]}: {reason}")
    return with_precision(settings, world.gather(chosen)[0]), notes


def precision_on(device: torch.device) -> tuple[Precision, str]:
    """The precision that `train.precision: auto` selects on a device, and the reason."""
    if device.type == "cuda":
        return ("bf16", "this GPU supports it") if gpu_has_bf16() else ("fp32", "this GPU has no bf16 arithmetic")
    if device.type != "cpu":
        return "fp32", f"bf16 is used on {device.type} only on request"
    if cpu_gains_from_bf16():
        return "bf16", "this CPU multiplies it faster than fp32"
    return "fp32", "this CPU multiplies bf16 no faster"


def stated_precisions(settings: FinetuneSettings | PretrainSettings) -> dict[str, str]:
    """The precision that the settings state for the whole run, and for the stages that have their own, by name."""
    stages = settings.stages if isinstance(settings, FinetuneSettings) else {}
    own = {name: str(stage.train["precision"]) for name, stage in stages.items() if "precision" in stage.train}
    return {WHOLE_RUN: settings.train.precision, **own}


def with_precision(settings: S, chosen: Mapping[str, str]) -> S:
    """The settings with these precisions in place of `auto`; a stage without its own has that of the whole run."""
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
    """A note if bf16 only costs time and accuracy on this machine."""
    if settings.train.precision == "fp32":
        return []
    if device.type == "cuda" and not gpu_has_bf16():
        return ["this GPU has no bf16 arithmetic and emulates it slowly: train.precision=fp32 would be faster"]
    if device.type != "cpu" or cpu_gains_from_bf16():
        return []
    return ["this CPU multiplies bf16 no faster than fp32: train.precision=fp32 would be at least as fast"]
