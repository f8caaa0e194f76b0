"""Describe and verify weights directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.config.schema import ModelSettings, Settings, TextSettings, TowerSettings
from refcli.errors import RefcliError, WeightsError
from refcli.files import file_sha256
from refcli.grounder import Grounder
from refcli.heads.table import head_outputs
from refcli.model.beit3 import OneTower
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import check_tokenizer, locate_tokenizer
from refcli.weights.layout import (
    MODEL_FILE,
    PRETRAINING_HEADS_FILE,
    HeadOnlySettings,
    TowerOnlySettings,
    is_file,
    read_any_settings,
    read_meta,
)
from refcli.weights.locate import BUILTIN
from refcli.weights.official.conversions.plan import is_parameter
from refcli.weights.tensors import NoInitialisation, StoredTensor, find_mismatches, non_finite_tensors, stored_tensors

PRETRAINING_ARGS = (
    "enable_mrefm",
    "enable_ref_mim",
    "enable_ref_mlm",
    "enable_dynamic_mim",
    "enable_mim_vts",
    "enable_mlm_sts",
)
"""Arguments of the published code about pretraining; the target-relation scores VTS and STS are last."""
LEARNT_OUTPUTS = "learnt_outputs"
"""Key of meta.json: outputs that pre-trained weights have learnt, although they are not ready for use."""
TRAINING_KEYS = (
    "trained_on",
    "objective",
    "stage",
    "steps_of_stages",
    "steps",
    "batch_size",
    "seed",
    "init_weights",
    "init_head",
    "averaged",
    "kept",
    "existence_threshold_from",
)
"""Keys of meta.json about training with refcli."""


@dataclass(frozen=True)
class WeightsInfo:
    """A description of a weights directory, made without reading its tensors."""

    directory: Path
    kind: str
    """The head's name; `tower` without one; `part of the head NAME`; `visual tokenizer`."""
    tasks: tuple[str, ...]
    """The outputs that the model was trained for: `box`, `mask`, `existence`."""
    parameters: dict[str, int]
    """Part -> number of parameters, of the main file."""
    pretraining_parameters: dict[str, int]
    """The same for the heads in `pretraining_heads.safetensors`."""
    dtypes: tuple[str, ...]
    image_size: tuple[int, int] | None
    """(height, width) in pixels; None for part of a head."""
    tokenizer: str | None
    tokenizer_is_there: bool
    sha256: str
    """Of the main file, as meta.json states it, else computed."""
    source: dict[str, Any]
    """File name, size, sha256, epoch and training args of the checkpoint it was converted from."""
    pretraining: dict[str, Any]
    """Those of `PRETRAINING_ARGS` that the checkpoint had."""
    origin: dict[str, Any]
    """Repository, revision and licence, if known."""
    training: dict[str, Any]
    """Those of `TRAINING_KEYS` that meta.json has."""
    scores: dict[str, dict[str, float]]
    """Split -> metric -> value, as measured when the model was packaged."""
    notes: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Of the main file."""
        return sum(self.parameters.values())

    @property
    def licence(self) -> str | None:
        """As the origin states it."""
        licence = self.origin.get("licence")
        return licence if isinstance(licence, str) else None


def read_info(directory: Path) -> WeightsInfo:
    """Describe a weights directory, whether converted, trained or packaged.

    Raises:
        WeightsError: it holds no weights, or files that cannot be read.
        ConfigError: a config.yaml with wrong settings.
    """
    require_model(directory)
    settings, meta = read_any_settings(directory), read_meta(directory)
    stored = stored_tensors(directory / MODEL_FILE)
    apart = stored_tensors(directory / PRETRAINING_HEADS_FILE) if (directory / PRETRAINING_HEADS_FILE).is_file() else {}
    source, args = mapping(meta, "source"), mapping(mapping(meta, "source"), "args")
    source = {**source, "args": args} if "args" in source else source
    recorded = mapping(meta, "files").get(MODEL_FILE)
    text = _text(settings)
    return WeightsInfo(
        directory=directory,
        kind=_kind(settings),
        tasks=tuple(map(str, meta["tasks"])) if isinstance(meta.get("tasks"), list) else _tasks(settings),
        parameters=_count(stored, depth=2),
        pretraining_parameters=_count(apart, depth=1),
        dtypes=tuple(sorted({tensor.dtype for tensor in stored.values()})),
        image_size=_image_size(settings),
        tokenizer=text.tokenizer if text else None,
        tokenizer_is_there=text is not None and _exists(locate_tokenizer(directory, text)),
        sha256=recorded if isinstance(recorded, str) else file_sha256(directory / MODEL_FILE),
        source=source,
        pretraining={name: args[name] for name in PRETRAINING_ARGS if name in args},
        origin=mapping(meta, "origin"),
        training={name: meta[name] for name in TRAINING_KEYS if name in meta},
        scores=_scores(meta),
        notes=tuple(map(str, meta["notes"])) if isinstance(meta.get("notes"), list) else (),
    )


def answered_outputs(directory: Path, *, head: str) -> tuple[str, ...]:
    """The outputs that weights have learnt with a head of that name; empty if they have another head.

    Raises:
        WeightsError, ConfigError: as `read_info`.
    """
    require_model(directory)
    settings, meta = read_any_settings(directory), read_meta(directory)
    choice = settings.head if isinstance(settings, ModelSettings | HeadOnlySettings) else None
    if choice is None or choice.name != head:
        return ()
    for stated in (meta.get(LEARNT_OUTPUTS), meta.get("tasks")):
        if isinstance(stated, list) and isinstance(settings, ModelSettings):
            return tuple(map(str, stated))
    return head_outputs(choice)


def require_model(directory: Path) -> None:
    """Check that the directory has a model file.

    Raises:
        WeightsError: it has none.
    """
    if not (directory / MODEL_FILE).is_file():
        raise WeightsError("this is not a weights directory", where=str(directory), hint=f"it has no {MODEL_FILE}")


def _kind(settings: Settings) -> str:
    if isinstance(settings, ModelSettings):
        return settings.head.name
    if isinstance(settings, HeadOnlySettings):
        return f"part of the head {settings.head.name}"
    return "tower" if isinstance(settings, TowerOnlySettings) else "visual tokenizer"


def mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key of meta.json; empty if the value is not a mapping."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _scores(meta: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics over all samples of each split, from the evaluation in the meta.json of a packaged model."""
    splits = mapping(mapping(meta, "scores"), "splits")
    overall = {name: mapping(mapping(splits, name), "overall") for name in splits}
    return {
        name: {metric: value for metric, value in metrics.items() if isinstance(value, int | float)}
        for name, metrics in overall.items()
    }


def _count(stored: Mapping[str, StoredTensor], *, depth: int) -> dict[str, int]:
    parts: dict[str, int] = {}
    for name in filter(is_parameter, sorted(stored)):
        part = ".".join(name.split(".")[:depth])
        parts[part] = parts.get(part, 0) + stored[name].numel
    return parts


def _tasks(settings: Settings) -> tuple[str, ...]:
    """All outputs of the head, for models whose meta.json does not state their tasks."""
    return head_outputs(settings.head) if isinstance(settings, ModelSettings) else ()


def _text(settings: Settings) -> TextSettings | None:
    return settings.text if isinstance(settings, ModelSettings | TowerOnlySettings) else None


def _exists(text: TextSettings) -> bool:
    return text.tokenizer == BUILTIN or Path(text.tokenizer).is_file()


def _image_size(settings: Settings) -> tuple[int, int] | None:
    if isinstance(settings, ModelSettings | TowerOnlySettings):
        return settings.tower.image_size
    return (settings.image_size, settings.image_size) if isinstance(settings, VisualTokenizerSettings) else None


def verify(directory: Path) -> list[str]:
    """A description of each problem of a weights directory; an empty list means that it is intact.

    Checks the recorded sha256s of all files; names, shapes and kinds of number against config.yaml; that every number
    is finite; and that the tokenizer exists and fits.

    Raises:
        WeightsError: it holds no weights at all.
    """
    require_model(directory)
    checks: tuple[Callable[[Path], list[str]], ...] = (_changed_files, _mismatches, _not_finite, _tokenizer_problems)
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(directory)
        except RefcliError as problem:
            problems.append(_as_line(problem))
    return list(dict.fromkeys(problems))  # several checks report a broken config.yaml


def unchecked(directory: Path) -> list[str]:
    """Notes for the user about what `verify` could not check.

    Raises:
        WeightsError: meta.json cannot be read.
    """
    if mapping(read_meta(directory), "files"):
        return []
    return ["meta.json records no checksums: changed numbers would not be detected"]


def _as_line(problem: RefcliError) -> str:
    return f"{problem.message} ({problem.where})" + (f": {problem.hint}" if problem.hint else "")


def _changed_files(directory: Path) -> list[str]:
    problems = []
    for name, recorded in mapping(read_meta(directory), "files").items():
        path = directory / Path(name).name
        if not is_file(path):
            problems.append(f"{name[:200]} is missing")
        elif file_sha256(path) != recorded:
            problems.append(f"{name} is not the file that was written: its sha256 differs from meta.json's")
    return problems


def _mismatches(directory: Path) -> list[str]:
    settings = read_any_settings(directory)
    stored = stored_tensors(directory / MODEL_FILE)
    with torch.device("meta"), NoInitialisation():
        if isinstance(settings, ModelSettings):
            wanted = Grounder.from_settings(settings).state_dict()
        elif isinstance(settings, TowerOnlySettings):
            wanted = {f"tower.{name}": tensor for name, tensor in OneTower(settings.tower).state_dict().items()}
        elif isinstance(settings, HeadOnlySettings):
            tower = TowerSettings(dim=settings.tower_dim, heads=1)
            complete = Grounder.from_settings(ModelSettings(tower=tower, head=settings.head)).state_dict()
            wanted = {name: tensor for name, tensor in complete.items() if name in stored}  # part of a head is enough
        else:
            assert isinstance(settings, VisualTokenizerSettings)
            wanted = VisualTokenizer(settings).state_dict()
    return [row.sentence() for row in find_mismatches(wanted, stored)]


def _not_finite(directory: Path) -> list[str]:
    problems = []
    for path in filter(is_file, (directory / MODEL_FILE, directory / PRETRAINING_HEADS_FILE)):
        try:
            problems += [f"{name} holds NaN or infinity" for name in non_finite_tensors(path)]
        except WeightsError as problem:
            problems.append(_as_line(problem))
    return problems


def _tokenizer_problems(directory: Path) -> list[str]:
    settings = read_any_settings(directory)
    if not isinstance(settings, ModelSettings | TowerOnlySettings):
        return []
    tokenizer = Tokenizer.load(locate_tokenizer(directory, settings.text))
    check_tokenizer(tokenizer, settings.tower, where=str(directory))
    return []
