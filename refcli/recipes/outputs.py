"""Switch off the outputs of a head that a run cannot train, so that its weights do not claim them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from refcli.config.load import read_yaml, stages_of, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings, HeadChoice, Settings
from refcli.data.training.dataset import GroundingDataset
from refcli.errors import ConfigError
from refcli.heads.base import OutputName
from refcli.heads.table import head_class, head_settings
from refcli.recipes.training import Session, open_data
from refcli.recipes.validation import check_calibration
from refcli.weights.checks import answered_outputs
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer

AnySettings = TypeVar("AnySettings", FinetuneSettings, PretrainSettings)
REGION_OUTPUTS: tuple[OutputName, ...] = ("box", "mask")
"""Outputs that locate a region; a model needs one of them."""
REMEDIES: Mapping[OutputName, str] = {
    "box": "name splits with targets",
    "mask": "prepare the data with masks, or start from weights that predict them (--init)",
    "existence": "name splits with and without targets, or set data.augment.no_target=0.1",
}


@dataclass(frozen=True)
class Outputs:
    """The outputs of a head in a run."""

    learnt: tuple[OutputName, ...]
    """Those with ground truth and a loss."""
    off: dict[OutputName, str]
    """Those that learn nothing and that the initial weights have not learnt -> reason."""


def resolve_outputs(settings: FinetuneSettings, session: Session) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The settings without the outputs that would learn nothing, the same in every process, and notes about them.

    A resumed run keeps the outputs that its run.yaml states.

    Raises:
        RefcliError: the data or the initial weights cannot be read, or an output that the head needs learns nothing.
    """
    off: dict[OutputName, str] = {}

    def plan() -> None:
        data = open_data(settings, store_path=session.store_path, tokenizer=load_tokenizer(settings.model.text))
        check_calibration(settings, data.validation)
        started_with = () if session.resumes else _learnt_before(settings)
        planned = plan_outputs(settings, data.training, started_with).off
        if session.resumes:
            file = session.out / "run.yaml"
            before = validate(FinetuneSettings, read_yaml(file), where=str(file))
            planned = _still_off(planned, before.model.head)
        _check_outputs(settings, planned)
        off.update(planned)

    session.on_main(plan)
    off = session.world.gather(off)[0]
    outputs = head_class(settings.model.head.name).OUTPUTS
    notes = tuple(
        f"note: {reason}: the {name} output learns nothing and is off "
        f"(model.head.settings.{outputs[name].switch}=false)"
        for name, reason in off.items()
    )
    return without_outputs(settings, off), notes


def check_predicts_regions(head: HeadChoice) -> None:
    """Check that a head predicts boxes or masks.

    Raises:
        ConfigError: it predicts neither.
    """
    config = head_settings(head)
    if not (getattr(config, "rec", True) or getattr(config, "res", True)):
        raise ConfigError(
            "the head predicts neither boxes nor masks", where="model.head.settings", hint="set rec=true or res=true"
        )


def plan_outputs(settings: AnySettings, data: GroundingDataset, started_with: Iterable[str]) -> Outputs:
    """Find out which of the requested outputs a run can train.

    Args:
        started_with: outputs that the initial weights have learnt.
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
    """The weight of a loss in the settings of a head."""
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


def _learnt_before(settings: FinetuneSettings) -> set[str]:
    """The outputs of its head that the initial weights of a run have learnt."""
    names = [name for name in (settings.train.init_weights, settings.train.init_head) if name is not None]
    return {output for name in names for output in answered_outputs(resolve(name), head=settings.model.head.name)}


def _still_off(off: Mapping[OutputName, str], head: HeadChoice) -> dict[OutputName, str]:
    """The outputs that were off before as well."""
    outputs, config = head_class(head.name).OUTPUTS, head_settings(head)
    was_on = {name for name, output in outputs.items() if output.switch is None or getattr(config, output.switch)}
    return {name: reason for name, reason in off.items() if name not in was_on}


def _check_outputs(settings: FinetuneSettings, off: Mapping[OutputName, str]) -> None:
    """Check that the head keeps an output for regions, and its existence output if that is to be calibrated.

    Raises:
        ConfigError: it does not.
    """
    head = settings.model.head
    outputs, config = head_class(head.name).OUTPUTS, head_settings(head)
    for name, reason in off.items():
        if outputs[name].switch is None:
            raise ConfigError(
                f"{reason}, and the head {head.name!r} predicts nothing but a {name}",
                where="data.train",
                hint=f"{REMEDIES[name]}, or use the head 'oneref'",
            )
    regions = [
        name
        for name in REGION_OUTPUTS
        if name in outputs and (outputs[name].switch is None or getattr(config, str(outputs[name].switch)))
    ]
    if regions and all(name in off for name in regions):
        raise ConfigError(
            f"the head would not learn to locate anything: {'; '.join(off[name] for name in regions)}",
            where="data.train",
            hint=f"{REMEDIES[regions[0]]}" + (", or set model.head.settings.rec=true" if regions == ["mask"] else ""),
        )
    if "existence" in off and settings.train.existence_min_t_acc is not None:
        raise ConfigError(
            f"{off['existence']}: there is no existence output to calibrate",
            where="train.existence_min_t_acc",
            hint=REMEDIES["existence"],
        )
