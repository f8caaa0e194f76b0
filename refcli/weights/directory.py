"""Weights directories as models: saved from a grounder, and loaded as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save

from refcli.config.schema import ModelSettings, Settings, TextSettings, TowerSettings
from refcli.errors import WeightsError
from refcli.grounder import Grounder
from refcli.text.tokenizer import Tokenizer
from refcli.weights.layout import (
    CONFIG_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    HeadOnlySettings,
    TowerOnlySettings,
    kind_of_weights,
    read_meta,
    read_settings_of,
    write_directory,
)
from refcli.weights.locate import BUILTIN, resolve
from refcli.weights.tensors import NoInitialisation, assign_state, read_tensors
from refcli.weights.tokenizers import find_tokenizer, load_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedWeights:
    """A model with its settings, tokenizer and meta.json."""

    grounder: Grounder
    settings: ModelSettings
    tokenizer: Tokenizer
    name: str
    meta: Mapping[str, Any]


def save_weights(
    directory: Path,
    grounder: Grounder,
    settings: ModelSettings,
    *,
    meta: Mapping[str, object],
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> None:
    """Write a weights directory; an existing one is replaced file by file, the model last.

    Args:
        meta: how the model was made, added to what every meta.json states.

    Raises:
        RefcliError: the tokenizer is missing, or the files cannot be written.
    """
    state = {
        name: (tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in grounder.state_dict().items()
    }
    files: dict[str, bytes] = {}
    if settings.text.tokenizer != BUILTIN:
        files[TOKENIZER_FILE] = load_tokenizer(settings.text).model
        settings = settings.model_copy(update={"text": settings.text.model_copy(update={"tokenizer": TOKENIZER_FILE})})
    files[CONFIG_FILE] = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False).encode()
    files[MODEL_FILE] = save(state)
    write_directory(directory, files, kind=settings.head.name, meta=meta)


def read_settings(directory: Path) -> ModelSettings:
    """The model settings in config.yaml, with the path of the tokenizer.

    Raises:
        WeightsError: config.yaml cannot be read, or the weights are only a tower, a head or a visual tokenizer.
        ConfigError: wrong settings.
    """
    hints: dict[type[Settings], str] = {TowerOnlySettings: "start `refcli finetune` from it: train.init_weights"}
    settings = read_settings_of(directory, ModelSettings, wanted="a model that can answer", hints=hints)
    return settings.model_copy(update={"text": locate_tokenizer(directory, settings.text)})


def read_tower_settings(directory: Path) -> TowerOnlySettings | None:
    """The settings of a tower without a head, with the path of the tokenizer; None for other weights."""
    if kind_of_weights(directory) is not TowerOnlySettings:
        return None
    settings = read_settings_of(directory, TowerOnlySettings, wanted="a tower without a head", hints={})
    return settings.model_copy(update={"text": locate_tokenizer(directory, settings.text)})


def read_head_settings(directory: Path) -> HeadOnlySettings:
    """The settings of a head without a tower.

    Raises:
        WeightsError: config.yaml cannot be read, or the weights are of another kind.
        ConfigError: wrong settings.
    """
    hint = "give a tower or a complete model as train.init_weights (--init)"
    hints: dict[type[Settings], str] = {ModelSettings: hint, TowerOnlySettings: hint}
    return read_settings_of(directory, HeadOnlySettings, wanted="a head without a tower", hints=hints)


def locate_tokenizer(directory: Path, text: TextSettings) -> TextSettings:
    """The text settings with the path of the tokenizer: in the directory, or the pulled `beit3.spm`."""
    if text.tokenizer == BUILTIN:
        return text
    return find_tokenizer(text.model_copy(update={"tokenizer": str(directory / text.tokenizer)}))


def load_weights(
    name_or_path: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedWeights:
    """Build the model of a weights directory, in evaluation mode.

    Raises:
        WeightsError: missing, damaged or ill-fitting files; tensors that do not fit are named.
        UsageError: no such weights.
    """
    directory = resolve(name_or_path)
    settings = read_settings(directory)
    tokenizer = Tokenizer.load(settings.text)  # before gigabytes are read: it may be missing
    check_tokenizer(tokenizer, settings.tower, where=str(directory))
    meta = read_meta(directory)
    state = read_tensors(directory / MODEL_FILE)
    with torch.device("meta"), NoInitialisation():
        grounder = Grounder.from_settings(settings)
    assign_state(grounder, state, where=str(directory / MODEL_FILE))
    grounder.to(device=device, dtype=dtype).eval()
    name = name_or_path if name_or_path == BUILTIN else directory.resolve().name
    return LoadedWeights(grounder, settings, tokenizer, name, meta)


def check_tokenizer(tokenizer: Tokenizer, tower: TowerSettings, *, where: str) -> None:
    """Check that the tower has an embedding for every id of the tokenizer.

    Raises:
        WeightsError: it does not, so the two do not belong together.
    """
    if tokenizer.vocabulary_size > tower.vocabulary_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocabulary_size:,} ids, more than the tower embeds "
            f"({tower.vocabulary_size:,})",
            where=where,
            hint="use the tokenizer that the weights were trained with",
        )
