"""Start a new model from trained weights: the same tower at the same or another image size, the head where it fits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from refcli.config.schema import ModelSettings
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.model.positions import resample_vision_positions
from refcli.text.tokenizer import Tokenizer
from refcli.weights.load import load_weights

VISION_POSITIONS = "vision_embedding.positions"


def start_from(name: str, grounder: Grounder, settings: ModelSettings) -> tuple[str, ...]:
    """Copy trained weights into a new grounder; returns what the user should know.

    The tower must fit whole, but for the image size: the vision positions are resampled to the new grid. The head
    must fit whole as well, unless the weights have another head: then the new head keeps its fresh weights.

    Args:
        name: `builtin` or a weights directory.
        grounder: the new model, changed in place.
        settings: what `grounder` was built from.

    Raises:
        WeightsError: no such weights.
        ConfigError: other tensors, other shapes, or another tokenizer.
    """
    loaded = load_weights(name, device="cpu", dtype=torch.float32)
    if loaded.tokenizer.model != Tokenizer.load(settings.text).model:
        raise ConfigError(
            "the weights were trained with another tokenizer",
            where=f"train.init_weights {name}",
            hint="model.text.tokenizer",
        )
    notes: tuple[str, ...] = (f"started from {name}",)
    tower = dict(loaded.grounder.tower.state_dict())
    old, new = loaded.settings.tower, settings.tower
    if old.grid != new.grid:
        tower[VISION_POSITIONS] = resample_vision_positions(
            tower[VISION_POSITIONS], old_grid=old.grid, new_grid=new.grid
        )
        notes += (f"vision positions resampled from {old.grid} to {new.grid} patches",)
    _copy_state(grounder.tower, tower, part="tower", name=name)
    if loaded.settings.head.name == settings.head.name:
        _copy_state(grounder.head, loaded.grounder.head.state_dict(), part="head", name=name)
    else:
        num_fresh = sum(parameter.numel() for parameter in grounder.head.parameters())
        notes += (
            f"the weights have the head {loaded.settings.head.name!r}: all {num_fresh:,} parameters of the head "
            f"{settings.head.name!r} start fresh",
        )
    return notes


def _copy_state(module: nn.Module, given: Mapping[str, Tensor], *, part: str, name: str) -> None:
    wanted = module.state_dict()
    problems = [f"{part}.{key} is missing" for key in wanted if key not in given]
    problems += [f"{part}.{key} is not part of the model" for key in given if key not in wanted]
    problems += [
        f"{part}.{key} has shape {tuple(given[key].shape)}, the settings want {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    if problems:
        raise ConfigError(
            f"the weights do not fit the settings ({len(problems)} tensors): " + "; ".join(problems[:5]),
            where=f"train.init_weights {name}",
            hint=f"make model.{part} the same as in the weights' config.yaml",
        )
    module.load_state_dict(dict(given))
