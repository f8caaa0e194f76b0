"""Pass trained weights on to a new run: the tower, also at another image size, the head, and pre-training heads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from refcli.config.load import validate
from refcli.config.schema import ModelSettings, Settings, TowerSettings
from refcli.errors import ConfigError
from refcli.files import write_atomically
from refcli.grounder import Grounder
from refcli.model.positions import resample_vision_positions
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import load_weights, read_head_settings, read_tower_settings
from refcli.weights.layout import MODEL_FILE, PRETRAINING_HEADS_FILE, HeadOnlySettings, read_meta, write_meta
from refcli.weights.locate import resolve
from refcli.weights.tensors import find_mismatches, read_tensors, summarize
from refcli.weights.tokenizers import load_tokenizer

VISION_POSITIONS = "vision_embedding.positions"
TOWER_PREFIX, HEAD_PREFIX = "tower.", "head."


@dataclass(frozen=True)
class StartingWeights:
    """Trained tensors to start a run from: a tower, and a head if the weights have one."""

    tower_settings: TowerSettings
    tower: Mapping[str, Tensor]
    tokenizer: Tokenizer
    head_name: str | None
    head: Mapping[str, Tensor]


def read_starting_weights(name: str) -> StartingWeights:
    """Read the trained tensors of weights.

    Raises:
        WeightsError: weights that were not pulled, or are damaged.
        UsageError: no such weights.
    """
    directory = resolve(name)
    if settings := read_tower_settings(directory):
        tokenizer = Tokenizer.load(settings.text)  # before gigabytes are read: it may be missing
        tower = {key.removeprefix(TOWER_PREFIX): tensor for key, tensor in read_tensors(directory / MODEL_FILE).items()}
        return StartingWeights(settings.tower, tower, tokenizer, None, {})
    loaded = load_weights(name, device="cpu", dtype=torch.float32)
    grounder, model = loaded.grounder, loaded.settings
    tower = dict(grounder.tower.state_dict())
    return StartingWeights(model.tower, tower, loaded.tokenizer, model.head.name, grounder.head.state_dict())


def start_from(name: str, grounder: Grounder, settings: ModelSettings) -> tuple[str, ...]:
    """Copy trained weights into a new grounder.

    The tower must fit completely, except for the image size: the vision positions are resampled to the new grid. The
    head must fit except for the parts that belong to one task: a part that the weights lack keeps its initial values,
    and a part that the new head lacks is dropped. The head also keeps its initial values if the weights have no head
    or another one.

    Args:
        name: weights, as `refcli.weights.locate.resolve` accepts them.
        grounder: the new model, changed in place.
        settings: the settings that `grounder` was built from.

    Returns:
        Notes for the user.

    Raises:
        WeightsError: weights that were not pulled, or are damaged.
        UsageError: no such weights.
        ConfigError: other tensors, other shapes, or another tokenizer.
    """
    start = read_starting_weights(name)
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
            f"the weights {had}: all {num_fresh:,} parameters of the head {settings.head.name!r} are newly initialised",
        )
    optional = {part for parts in grounder.head.OPTIONAL_PARTS.values() for part in parts}
    wanted, given = grounder.head.state_dict(), dict(start.head)
    fresh = (_parts(wanted) - _parts(given)) & optional
    dropped = (_parts(given) - _parts(wanted)) & optional
    head = {key: tensor for key, tensor in given.items() if _part(key) not in dropped}
    head |= {key: tensor for key, tensor in wanted.items() if _part(key) in fresh}
    _copy_state(grounder.head, head, part="head", name=name)
    notes += (f"newly initialised, because the weights do not have them: {_listed(fresh)}",) if fresh else ()
    notes += (f"dropped, because the settings switch them off: {_listed(dropped)}",) if dropped else ()
    return notes


def _part(key: str) -> str:
    """The module directly below the head that a tensor belongs to."""
    return key.split(".")[0]


def _parts(state: Mapping[str, Tensor]) -> set[str]:
    """The modules directly below the head that have tensors."""
    return {_part(key) for key in state}


def _listed(parts: set[str]) -> str:
    return ", ".join(HEAD_PREFIX + part for part in sorted(parts))


def _copy_state(module: nn.Module, given: Mapping[str, Tensor], *, part: str, name: str) -> None:
    if rows := find_mismatches(module.state_dict(), given):
        raise ConfigError(
            f"the weights do not fit the settings {summarize(rows, prefix=f'{part}.')}",
            where=f"train.init_weights {name}",
            hint=f"make model.{part} the same as in the weights' config.yaml",
        )
    module.load_state_dict(dict(given))


def start_head_from(name: str, grounder: Grounder, settings: ModelSettings) -> tuple[str, ...]:
    """Copy the tensors of a head into a new grounder.

    The weights may be only part of a head: a module directly below the head keeps its initial values if the weights
    have no tensor of it (such as the pyramid, which the published decoders lack). The others must fit completely.

    Args:
        name: a weights directory that `refcli weights convert` wrote from a decoder without its tower.
        grounder: the new model, changed in place.
        settings: the settings that `grounder` was built from.

    Returns:
        Notes for the user.

    Raises:
        WeightsError: damaged weights, or weights other than a head without a tower.
        UsageError: no such weights.
        ConfigError: another head, other tensors, or other shapes.
    """
    directory, where = resolve(name), f"train.init_head {name}"
    stored = read_head_settings(directory)
    if stored.head.name != settings.head.name:
        raise ConfigError(
            f"the weights are of the head {stored.head.name!r}, not of {settings.head.name!r}",
            where=where,
            hint=f"model.head.name={stored.head.name}",
        )
    given = {key.removeprefix(HEAD_PREFIX): tensor for key, tensor in read_tensors(directory / MODEL_FILE).items()}
    wanted = grounder.head.state_dict()
    parts = _parts(given)
    expected = {key: tensor for key, tensor in wanted.items() if _part(key) in parts}
    differences = _differences(stored, grounder, settings)
    if rows := find_mismatches(expected, given):
        raise ConfigError(
            f"the weights of the head do not fit the settings {summarize(rows, prefix=HEAD_PREFIX)}",
            where=where,
            hint="the weights were made with " + ", ".join(differences) if differences else None,
        )
    grounder.head.load_state_dict({**wanted, **given})
    rest = _parts(wanted) - parts
    notes: tuple[str, ...] = (f"the head started from {name}: {_listed(parts)}",)
    notes += (f"not in these weights: {_listed(rest)}",) if rest else ()
    notes += (f"the weights were made with {', '.join(differences)}; these settings differ",) if differences else ()
    return notes


def _differences(stored: HeadOnlySettings, grounder: Grounder, settings: ModelSettings) -> list[str]:
    """The settings in config.yaml that differ from those of the new model, as `key=value`."""
    config: type[Settings] = grounder.head.Config
    ours = validate(config, settings.head.settings, where="model.head.settings").model_dump(mode="json")
    theirs = validate(config, stored.head.settings, where="config.yaml").model_dump(mode="json")
    changed = [f"model.head.settings.{key}={theirs[key]}" for key in stored.head.settings if theirs[key] != ours[key]]
    wide = [] if stored.tower_dim == settings.tower.dim else [f"model.tower.dim={stored.tower_dim}"]
    return wide + changed


OFFICIAL_NAMES = (
    (re.compile(r"^mim\."), "mim_head."),
    (re.compile(r"^mlm\."), "mlm_head."),
    (re.compile(r"^visual_target_relation\.(0|2|4)\."), "mim_vts_head.layers.{layer}."),
    (re.compile(r"^semantic_target_relation\.(0|2|4)\."), "mlm_sts_head.layers.{layer}."),
)
"""Our name of a tensor -> the official one, which numbers only the linear layers; ours also numbers the ReLUs."""


def official_name(name: str) -> str:
    """The official name of one of `MRefMHeads`' tensors."""
    for pattern, replacement in OFFICIAL_NAMES:
        if match := pattern.match(name):
            layer = int(match[1]) // 2 if match.groups() else 0
            return replacement.format(layer=layer) + name[match.end() :]
    raise KeyError(name)


def save_pretraining_heads(directory: Path, heads: nn.Module) -> None:
    """Write `pretraining_heads.safetensors` into a weights directory, after recording its sha256 in meta.json."""
    state = {official_name(name): tensor.float().contiguous().cpu() for name, tensor in heads.state_dict().items()}
    content, meta = save(state, metadata={"format": "pt"}), read_meta(directory)
    meta["files"] = {**meta.get("files", {}), PRETRAINING_HEADS_FILE: hashlib.sha256(content).hexdigest()}
    write_meta(directory, meta)
    write_atomically(directory / PRETRAINING_HEADS_FILE, content)


def load_pretraining_heads(directory: Path, heads: nn.Module) -> tuple[str, ...]:
    """Load the heads of `pretraining_heads.safetensors` that exist and have the right shapes.

    Returns:
        A note for the user about the heads that keep their initial values.

    Raises:
        WeightsError: the file is damaged.
    """
    path = directory / PRETRAINING_HEADS_FILE
    given: Mapping[str, Tensor] = {}
    if path.is_file():
        given = read_tensors(path, what="the file of the pre-training heads")
    fresh = []
    for name, head in heads.named_children():
        wanted = {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
        found = {key: given[official_name(key)] for key in wanted if official_name(key) in given}
        if find_mismatches(wanted, found):
            fresh.append(name)
        else:
            head.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in found.items()})
    return (f"newly initialised: the pre-training heads {', '.join(fresh)}",) if fresh else ()
