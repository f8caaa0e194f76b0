"""The tokenizers that models need: the pulled text tokenizer, and weights directories of visual tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.config.schema import ModelSettings, Settings, TextSettings
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.text.tokenizer import OFFICIAL_NAME, Tokenizer
from refcli.weights.catalog import TOKENIZER
from refcli.weights.layout import (
    CONFIG_FILE,
    MODEL_FILE,
    HeadOnlySettings,
    TowerOnlySettings,
    is_file,
    read_settings_of,
    write_directory,
)
from refcli.weights.locate import has_home, pulled_directory, resolve
from refcli.weights.tensors import assign_state, read_tensors

VISUAL_TOKENIZER_KIND = "vqkd"
"""The row of `CONVERSIONS` that writes directories with the same tensors."""


def pulled_tokenizer() -> Path | None:
    """The `beit3.spm` that `refcli weights pull` downloaded, or None."""
    path = pulled_directory(TOKENIZER) / OFFICIAL_NAME if has_home() else None
    return path if path is not None and is_file(path) else None


def find_tokenizer(text: TextSettings) -> TextSettings:
    """The settings with the path of the pulled `beit3.spm` where they name a `beit3.spm` that does not exist.

    Store the original settings, not these: another machine keeps its pulled files elsewhere.
    """
    path, pulled = Path(text.tokenizer), pulled_tokenizer()
    if path.name != OFFICIAL_NAME or path.is_file() or pulled is None:
        return text
    return text.model_copy(update={"tokenizer": str(pulled)})


def load_tokenizer(text: TextSettings) -> Tokenizer:
    """The text tokenizer that the settings name; errors as `Tokenizer.load`."""
    return Tokenizer.load(find_tokenizer(text))


def save_visual_tokenizer(directory: Path, tokenizer: VisualTokenizer, *, meta: Mapping[str, object]) -> None:
    """Write a weights directory in float32; an existing one is replaced file by file, the model last.

    Args:
        meta: where the tokenizer comes from, added to what every meta.json states.

    Raises:
        RefcliError: the files cannot be written.
    """
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
    files = {
        CONFIG_FILE: yaml.safe_dump(tokenizer.settings.model_dump(mode="json"), sort_keys=False).encode(),
        MODEL_FILE: save(state, metadata={"format": "pt"}),
    }
    stated = {"tasks": [], "dtype": "fp32", "notes": ["a visual tokenizer, for `refcli pretrain`"], **meta}
    write_directory(directory, files, kind=VISUAL_TOKENIZER_KIND, meta=stated)


def load_visual_tokenizer(name_or_path: str) -> VisualTokenizer:
    """The visual tokenizer of a weights directory or catalogue name, in float32 on the CPU, in evaluation mode.

    Raises:
        WeightsError: weights of another kind, or missing, damaged or ill-fitting files.
        UsageError: no such weights.
        ConfigError: wrong settings in config.yaml.
    """
    directory = resolve(name_or_path)
    hint = (
        "`refcli weights convert` writes one from a VQ-KD checkpoint, and the preset visual_tokenizer_small trains a "
        "small one"
    )
    hints: dict[type[Settings], str] = {ModelSettings: hint, TowerOnlySettings: hint, HeadOnlySettings: hint}
    settings = read_settings_of(directory, VisualTokenizerSettings, wanted="a visual tokenizer", hints=hints)
    with torch.device("meta"):
        tokenizer = VisualTokenizer(settings)
    assign_state(tokenizer, read_tensors(directory / MODEL_FILE), where=str(directory / MODEL_FILE))
    return tokenizer.float().eval()
