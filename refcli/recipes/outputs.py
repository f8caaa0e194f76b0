"""Which outputs of a head a run can train: one that sees no truth is off, so that no weights claim it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from refcli.config.load import read_yaml, stages_of, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings, HeadChoice, Settings
from refcli.data.training.dataset import GroundingDataset
from refcli.engine.distributed.world import World
from refcli.engine.stopping import failing_together
from refcli.errors import ConfigError, DataError
from refcli.heads.base import OutputName, tells_existence
from refcli.heads.table import head_class, head_settings
from refcli.recipes.restarts import takes_over
from refcli.recipes.training import Data, open_data
from refcli.weights.checks import answered_outputs
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer

AnySettings = TypeVar("AnySettings", FinetuneSettings, PretrainSettings)
PLACES: tuple[OutputName, ...] = ("box", "mask")
"""Outputs that say where something is: a model needs one of them."""
WAYS_OUT: Mapping[OutputName, str] = {
    "box": "name splits with targets",
    "mask": "prepare the data with masks, or start from weights that draw them (--init)",
    "existence": "name splits with and without targets, or set data.augment.no_target=0.1",
}


@dataclass(frozen=True)
class Outputs:
    """What becomes of the outputs of a head in a run."""

    learnt: tuple[OutputName, ...]
    """They see truth and have a loss."""
    off: dict[OutputName, str]
    """They learn nothing, and no weights that the run starts from have learnt them; with the reason."""


def settle_outputs(
    settings: FinetuneSettings, world: World, *, store_path: Path, out: Path | None, resume: bool
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The settings without the outputs that would learn nothing, the same in every process, and notes about them.

    A run that goes on has the outputs that its run.yaml states.

    Raises:
        RefcliError: the data or the initial weights cannot be read, or nothing that the head has to have is learnt.
    """
    off: dict[OutputName, str] = {}
    with failing_together(world):
        if world.is_main:
            goes_on = out is not None and (resume or takes_over(out)) and (out / "run.yaml").is_file()
            data = open_data(settings, store_path=store_path, tokenizer=load_tokenizer(settings.model.text))
            if settings.train.existence_min_t_acc is not None:
                check_calibration(settings, data)
            off = plan_outputs(settings, data.training, () if goes_on else _started_with(settings)).off
            if out is not None and goes_on:
                file = out / "run.yaml"
                before = validate(FinetuneSettings, read_yaml(file), where=str(file))
                off = _as_before(off, before.model.head)
            _check(settings, off)
    off = world.gather(off)[0]
    outputs = head_class(settings.model.head.name).OUTPUTS
    notes = tuple(
        f"note: {reason}: the {name} output learns nothing and is off "
        f"(model.head.settings.{outputs[name].switch}=false)"
        for name, reason in off.items()
    )
    return without_outputs(settings, off), notes


def plan_outputs(settings: AnySettings, data: GroundingDataset, started_with: Iterable[str]) -> Outputs:
    """What becomes of each output that the settings ask for.

    Args:
        started_with: outputs that the weights have learnt from which the run starts.
    """
    head = settings.model.head
    has_target = data.has_target()
    has_both = has_target.any() and (not has_target.all() or settings.data.augment.no_target > 0)
    has_truth: dict[OutputName, bool] = {
        "box": bool(has_target.any()), "mask": bool(data.has_mask().any()), "existence": bool(has_both)
    }  # fmt: skip
    stages: dict[str, FinetuneSettings] = stages_of(settings) if isinstance(settings, FinetuneSettings) else {}
    heads = [head_settings(stage.model.head) for stage in stages.values()] or [head_settings(head)]
    learnt: list[OutputName] = []
    off: dict[OutputName, str] = {}
    for name, output in head_class(head.name).OUTPUTS.items():
        if output.switch is not None and not getattr(head_settings(head), output.switch):
            continue
        has_loss = any(_weight(config, loss) for config in heads for loss in output.losses)
        if has_truth[name] and has_loss:
            learnt.append(name)
        elif name not in started_with:
            off[name] = f"no sample of data.train has a {'mask' if name == 'mask' else 'target'}"
            if name == "existence" and has_target.all():
                off[name] = "every sample of data.train has a target"
            if not has_loss:
                off[name] = f"the weights of its losses are 0 ({', '.join(output.losses)})"
    return Outputs(tuple(learnt), off)


def _weight(config: Settings, loss: str) -> float:
    """How much a loss of a head counts, by its settings."""
    return float(config.model_dump()["loss_weights"][loss])


def without_outputs(settings: FinetuneSettings, off: Iterable[OutputName]) -> FinetuneSettings:
    """The settings of a run, and of its stages, with outputs switched off."""
    outputs = head_class(settings.model.head.name).OUTPUTS
    switches = {outputs[name].switch: False for name in off}
    if not switches:
        return settings
    head = settings.model.head
    head = head.model_copy(update={"settings": {**head.settings, **switches}})
    stages = {}
    for name, stage in settings.stages.items():
        own = stage.model.head.settings
        own = {**own, **{switch: False for switch in switches if switch in own}}
        own_model = stage.model.model_copy(update={"head": stage.model.head.model_copy(update={"settings": own})})
        stages[name] = stage.model_copy(update={"model": own_model})
    model = settings.model.model_copy(update={"head": head})
    return settings.model_copy(update={"model": model, "stages": stages})


def check_calibration(settings: FinetuneSettings, data: Data) -> None:
    """Make sure, before hours of training, that there will be something to calibrate and something to do it on.

    Raises:
        ConfigError: the head has no existence output.
        DataError: the validation samples all have a target, or none has.
    """
    where = "train.existence_min_t_acc"
    if not tells_existence(head_settings(settings.model.head)):
        raise ConfigError("the head has no existence output", where=where, hint="model.head.settings.existence=true")
    has_target = data.watched.has_target() if data.watched else np.zeros(0, dtype=bool)
    if has_target.all() or not has_target.any():
        raise DataError(
            f"of the {len(has_target):,} validation samples {has_target.sum():,} have a target; a threshold needs both "
            "kinds",
            where=where,
            hint="data.validation, data.validation_samples",
        )


def _started_with(settings: FinetuneSettings) -> set[str]:
    """What the initial weights of a run have learnt of its head."""
    names = [name for name in (settings.train.init_weights, settings.train.init_head) if name is not None]
    return {output for name in names for output in answered_outputs(resolve(name), head=settings.model.head.name)}


def _as_before(off: Mapping[OutputName, str], head: HeadChoice) -> dict[OutputName, str]:
    """Only what was off before is off."""
    outputs, config = head_class(head.name).OUTPUTS, head_settings(head)
    was_on = {name for name, output in outputs.items() if output.switch is None or getattr(config, output.switch)}
    return {name: reason for name, reason in off.items() if name not in was_on}


def _check(settings: FinetuneSettings, off: Mapping[OutputName, str]) -> None:
    """Refuse a run whose head would have no output left, or no existence output where that is to be calibrated."""
    head = settings.model.head
    outputs, config = head_class(head.name).OUTPUTS, head_settings(head)
    for name, reason in off.items():
        if outputs[name].switch is None:
            raise ConfigError(
                f"{reason}, and the head {head.name!r} answers with nothing but a {name}",
                where="data.train",
                hint=f"{WAYS_OUT[name]}, or use the head 'oneref'",
            )
    places = [
        name
        for name in PLACES
        if name in outputs and (outputs[name].switch is None or getattr(config, str(outputs[name].switch)))
    ]
    if places and all(name in off for name in places):
        raise ConfigError(
            f"the head would not learn to locate anything: {'; '.join(off[name] for name in places)}",
            where="data.train",
            hint=f"{WAYS_OUT[places[0]]}" + (", or set model.head.settings.rec=true" if places == ["mask"] else ""),
        )
    if "existence" in off and settings.train.existence_min_t_acc is not None:
        raise ConfigError(
            f"{off['existence']}: there is no existence output to calibrate",
            where="train.existence_min_t_acc",
            hint=WAYS_OUT["existence"],
        )
