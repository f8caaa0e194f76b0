"""Weights directories: model.safetensors, config.yaml (the model's settings), meta.json and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

import refcli
from refcli.config.load import validate
from refcli.config.schema import ModelSettings, TextSettings, TowerSettings
from refcli.config.yaml_text import read_mapping
from refcli.errors import WeightsError
from refcli.files import write_atomically
from refcli.grounder import Grounder
from refcli.text.tokenizer import Tokenizer
from refcli.weights.locate import (
    BUILTIN,
    BUILTIN_PATH,
    CONFIG_FILE,
    META_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    resolve,
)
from refcli.weights.meta import meta_text, read_meta
from refcli.weights.misfits import KeyRow, misfits, summary
from refcli.weights.official.conversions.beit3 import TowerOnlySettings
from refcli.weights.text_tokenizer import find_tokenizer, load_tokenizer
from refcli.weights.writing import explain_weights_write_errors

__all__ = [
    "BUILTIN",
    "BUILTIN_PATH",
    "CONFIG_FILE",
    "META_FILE",
    "MODEL_FILE",
    "LoadedWeights",
    "load_weights",
    "save_weights",
]

META_SCHEMA = "refcli.weights/1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedWeights:
    """A model ready to answer."""

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
        meta: how the model came about, for meta.json beside what every weights directory states.

    Raises:
        RefcliError: the tokenizer is not there, or the disk refuses.
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


def write_directory(directory: Path, files: Mapping[str, bytes], *, kind: str, meta: Mapping[str, object]) -> None:
    """Write the files of a weights directory in turn, after a meta.json that states their sha256s.

    So what a crash leaves never looks whole: either the model is not there, or a file is not the one that is stated.

    Raises:
        RefcliError: the disk refuses.
    """
    sha256s = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    stated = {"schema": META_SCHEMA, "refcli": refcli.__version__, "kind": kind, **meta, "files": sha256s}
    with explain_weights_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / META_FILE, meta_text(stated))
        for name, content in files.items():
            write_atomically(directory / name, content)


def read_settings(directory: Path) -> ModelSettings:
    """The model settings stored beside the weights.

    Raises:
        WeightsError: no readable config.yaml, or one of a tower without a head or of a visual tokenizer.
        ConfigError: wrong settings.
    """
    values = read_config(directory)
    if "tower_dim" in values:
        raise WeightsError(
            "these weights are part of a head without a tower, not a model that can be asked", where=str(directory)
        )
    if "head" not in values:
        raise WeightsError(
            f"these weights are {'a tower without a head' if 'tower' in values else 'a visual tokenizer'}, "
            "not a model that can be asked",
            where=str(directory),
            hint="start `refcli finetune` from it: train.init_weights" if "tower" in values else None,
        )
    settings = validate(ModelSettings, values, where=str(directory / CONFIG_FILE))
    return settings.model_copy(update={"text": beside(directory, settings.text)})


def read_tower_settings(directory: Path) -> TowerOnlySettings | None:
    """The settings of a tower without a head; None for a whole model."""
    values = read_config(directory)
    if "head" in values or "tower" not in values:
        return None
    settings = validate(TowerOnlySettings, values, where=str(directory / CONFIG_FILE))
    return settings.model_copy(update={"text": beside(directory, settings.text)})


def read_state(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors.

    Raises:
        WeightsError: the file is damaged.
    """
    path = directory / MODEL_FILE
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, LookupError) as problem:
        raise WeightsError(
            "the model file is damaged", where=str(path), hint=f"fetch it again ({problem})"
        ) from problem


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.yaml, not yet checked.

    Raises:
        WeightsError: it cannot be read, or is no mapping.
    """
    path = directory / CONFIG_FILE
    try:
        return read_mapping(path, what="config.yaml", error=WeightsError)
    except WeightsError as problem:
        text = "the weights have no readable config.yaml"
        raise WeightsError(text, where=str(path), hint=problem.message) from problem


def beside(directory: Path, text: TextSettings) -> TextSettings:
    """The text settings of weights with the path of their tokenizer: in the directory, or the pulled `beit3.spm`."""
    if text.tokenizer == BUILTIN:
        return text
    return find_tokenizer(text.model_copy(update={"tokenizer": str(directory / text.tokenizer)}))


def load_weights(
    name_or_path: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedWeights:
    """Build the model that a weights directory describes, in evaluation mode.

    Raises:
        WeightsError: missing, damaged or ill-fitting files; tensors that do not fit are named.
        UsageError: no such weights.
    """
    directory = resolve(name_or_path)
    settings = read_settings(directory)
    tokenizer = Tokenizer.load(settings.text)  # before the gigabytes: it may not be there
    check_tokenizer(tokenizer, settings.tower, where=str(directory))
    meta = read_meta(directory)
    state = read_state(directory)
    with torch.device("meta"), NoInitialisation():
        grounder = Grounder.from_settings(settings)
    assign_state(grounder, state, where=str(directory / MODEL_FILE))
    grounder.to(device=device, dtype=dtype).eval()
    name = name_or_path if name_or_path == BUILTIN else directory.resolve().name
    return LoadedWeights(grounder, settings, tokenizer, name, meta)


def check_tokenizer(tokenizer: Tokenizer, tower: TowerSettings, *, where: str) -> None:
    """Make sure that the tower embeds every id that a tokenizer gives.

    Raises:
        WeightsError: it does not, so the two do not belong together.
    """
    if tokenizer.vocabulary_size > tower.vocabulary_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocabulary_size:,} ids, more than the tower embeds "
            f"({tower.vocabulary_size:,})",
            where=where,
            hint="put the tokenizer there that the weights were trained with",
        )


class NoInitialisation(TorchFunctionMode):
    """Leaves fresh parameters as they are: they are about to be replaced, and drawing on `meta` costs a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever `func` returns
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def assign_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Put a complete state dict into a model, replacing its tensors (a model on `meta` becomes real).

    Raises:
        WeightsError: anything missing, left over, misshapen, of another sort of numbers, or not finite.
    """
    wanted = model.state_dict()
    rows = misfits(wanted, state)
    rows += [
        KeyRow(name, "NaN or infinity") for name in wanted if name in state and not torch.isfinite(state[name]).all()
    ]
    if rows:
        raise WeightsError(
            f"the weights do not fit the model {summary(rows)}",
            where=where,
            hint="do config.yaml and model.safetensors belong together?",
        )
    model.load_state_dict(dict(state), strict=True, assign=True)
