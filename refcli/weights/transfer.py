"""Start a new model from trained weights: the same tower at the same or another image size, the head where it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refcli.config.schema import ModelSettings, TowerSettings
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.model.positions import resample_vision_positions
from refcli.text.tokenizer import Tokenizer
from refcli.weights.load import load_weights, read_state, read_tower_settings
from refcli.weights.locate import resolve
from refcli.weights.misfits import misfits, summary
from refcli.weights.text_tokenizer import load_tokenizer

VISION_POSITIONS = "vision_embedding.positions"
TOWER_PREFIX = "tower."


@dataclass(frozen=True)
class Start:
    """What a run can begin with: a tower, and a head where the weights have one."""

    tower_settings: TowerSettings
    tower: Mapping[str, Tensor]
    tokenizer: Tokenizer
    head_name: str | None
    head: Mapping[str, Tensor]


def read_start(name: str) -> Start:
    """The trained tensors of some weights.

    Raises:
        WeightsError: weights that were not pulled, or are damaged.
        UsageError: no such weights.
    """
    directory = resolve(name)
    if settings := read_tower_settings(directory):
        tokenizer = Tokenizer.load(settings.text)  # before the gigabytes: it may not be there
        tower = {key.removeprefix(TOWER_PREFIX): tensor for key, tensor in read_state(directory).items()}
        return Start(settings.tower, tower, tokenizer, None, {})
    loaded = load_weights(name, device="cpu", dtype=torch.float32)
    grounder, model = loaded.grounder, loaded.settings
    tower = dict(grounder.tower.state_dict())
    return Start(model.tower, tower, loaded.tokenizer, model.head.name, grounder.head.state_dict())


def start_from(name: str, grounder: Grounder, settings: ModelSettings) -> tuple[str, ...]:
    """Copy trained weights into a new grounder; returns what the user should know.

    The tower must fit whole, but for the image size: the vision positions are resampled to the new grid. The head
    must fit as well, but for the parts that belong to one task: a part that the weights lack starts fresh, one that
    the new head lacks is left behind. Weights without a head, or with another one, leave the head fresh.

    Args:
        name: as `refcli.weights.locate.resolve` takes it.
        grounder: the new model, changed in place.
        settings: what `grounder` was built from.

    Raises:
        WeightsError: weights that were not pulled, or are damaged.
        UsageError: no such weights.
        ConfigError: other tensors, other shapes, or another tokenizer.
    """
    start = read_start(name)
    if start.tokenizer.model != load_tokenizer(settings.text).model:
        raise ConfigError(
            "the weights were trained with another tokenizer",
            where=f"train.init_weights {name}",
            hint="model.text.tokenizer",
        )
    notes: tuple[str, ...] = (f"started from {name}",)
    tower = dict(start.tower)
    old, new = start.tower_settings, settings.tower
    if old.grid != new.grid:
        tower[VISION_POSITIONS] = resample_vision_positions(
            tower[VISION_POSITIONS].float(), old_grid=old.grid, new_grid=new.grid
        )
        notes += (f"vision positions resampled from {old.grid} to {new.grid} patches",)
    _copy_state(grounder.tower, tower, part="tower", name=name)
    if start.head_name != settings.head.name:
        num_fresh = sum(parameter.numel() for parameter in grounder.head.parameters())
        had = f"have the head {start.head_name!r}" if start.head_name else "have no head"
        return (
            *notes,
            f"the weights {had}: all {num_fresh:,} parameters of the head {settings.head.name!r} start fresh",
        )
    optional = {part for parts in grounder.head.OPTIONAL_PARTS.values() for part in parts}
    wanted, given = grounder.head.state_dict(), dict(start.head)
    fresh = (_parts(wanted) - _parts(given)) & optional
    behind = (_parts(given) - _parts(wanted)) & optional
    head = {key: tensor for key, tensor in given.items() if key.split(".")[0] not in behind}
    head |= {key: tensor for key, tensor in wanted.items() if key.split(".")[0] in fresh}
    _copy_state(grounder.head, head, part="head", name=name)
    notes += (f"start fresh, for the weights do not have them: {_listed(fresh)}",) if fresh else ()
    notes += (f"left behind, for the settings switch them off: {_listed(behind)}",) if behind else ()
    return notes


def _parts(state: Mapping[str, Tensor]) -> set[str]:
    """The modules right below the head that have tensors."""
    return {key.split(".")[0] for key in state}


def _listed(parts: set[str]) -> str:
    return ", ".join(f"head.{part}" for part in sorted(parts))


def _copy_state(module: nn.Module, given: Mapping[str, Tensor], *, part: str, name: str) -> None:
    if rows := misfits(module.state_dict(), given):
        raise ConfigError(
            f"the weights do not fit the settings {summary(rows, prefix=f'{part}.')}",
            where=f"train.init_weights {name}",
            hint=f"make model.{part} the same as in the weights' config.yaml",
        )
    module.load_state_dict(dict(given))
