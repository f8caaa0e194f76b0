"""Weights directories of visual tokenizers: what `refcli weights convert` makes of VQ-KD, and what is trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from refcli.config.load import validate
from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import WeightsError
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.weights.directory import CONFIG_FILE, MODEL_FILE, assign_state, read_config, read_state, write_directory
from refcli.weights.locate import resolve

KIND = "vqkd"
"""The row of `CONVERSIONS` whose directories have the same tensors."""


def save_visual_tokenizer(directory: Path, tokenizer: VisualTokenizer, *, meta: Mapping[str, object]) -> None:
    """Write a weights directory, as float32; an existing one is replaced file by file, the model last.

    Args:
        meta: where the tokenizer is from, for meta.json beside what every weights directory states.

    Raises:
        RefcliError: the disk refuses.
    """
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
    files = {
        CONFIG_FILE: yaml.safe_dump(tokenizer.settings.model_dump(mode="json"), sort_keys=False).encode(),
        MODEL_FILE: save(state, metadata={"format": "pt"}),
    }
    stated = {"tasks": [], "dtype": "fp32", "notes": ["a visual tokenizer, for `refcli pretrain`"], **meta}
    write_directory(directory, files, kind=KIND, meta=stated)


def load_visual_tokenizer(name_or_path: str) -> VisualTokenizer:
    """The visual tokenizer of a weights directory or of a catalogue name, as float32 on the CPU, in evaluation mode.

    Raises:
        WeightsError: weights of another kind, or missing, damaged or ill-fitting files.
        UsageError: no such weights.
        ConfigError: wrong settings in its config.yaml.
    """
    directory = resolve(name_or_path)
    values = read_config(directory)
    if "tower" in values:
        raise WeightsError(
            f"these weights are a {'model' if 'head' in values else 'tower'}, not a visual tokenizer",
            where=str(directory),
            hint="`refcli weights convert` makes one of a VQ-KD checkpoint, and the preset visual_tokenizer_small "
            "trains a small one",
        )
    settings = validate(VisualTokenizerSettings, values, where=str(directory / CONFIG_FILE))
    with torch.device("meta"):
        tokenizer = VisualTokenizer(settings)
    assign_state(tokenizer, read_state(directory), where=str(directory / MODEL_FILE))
    return tokenizer.float().eval()
