"""Whether a weights directory is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.config.schema import ModelSettings, TowerSettings
from refcli.errors import RefcliError
from refcli.files import file_sha256
from refcli.grounder import Grounder
from refcli.model.beit3 import OneTower
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.text.tokenizer import Tokenizer
from refcli.weights.conversions.beit3 import TowerOnlySettings
from refcli.weights.conversions.plan import HeadOnlySettings
from refcli.weights.convert import PRETRAINING_HEADS_FILE
from refcli.weights.inspect import DAMAGE, damaged, mapping, read_any_settings, require_model, stored_tensors
from refcli.weights.load import NoInitialisation, beside, check_tokenizer
from refcli.weights.locate import MODEL_FILE, is_file
from refcli.weights.meta import read_meta
from refcli.weights.misfits import misfits


def verify(directory: Path) -> list[str]:
    """Everything that is wrong with a weights directory; an empty list means that it is whole.

    Checked: recorded sha256s of all files; names, shapes and sorts of numbers against config.yaml; that every number is
    finite; that the tokenizer is there and fits.

    Raises:
        WeightsError: it holds no weights at all.
    """
    require_model(directory)
    checks: tuple[Callable[[Path], list[str]], ...] = (_changed_files, _misfits, _not_finite, _tokenizer_problems)
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(directory)
        except RefcliError as problem:
            problems.append(_line(problem))
    return list(dict.fromkeys(problems))  # several checks stumble over a broken config.yaml


def unchecked(directory: Path) -> list[str]:
    """What the user should know that `verify` could not check.

    Raises:
        WeightsError: meta.json cannot be read.
    """
    if mapping(read_meta(directory), "files"):
        return []
    return ["no checksums are recorded in meta.json: other numbers in the place of the right ones would not be noticed"]


def _line(problem: RefcliError) -> str:
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


def _misfits(directory: Path) -> list[str]:
    settings = read_any_settings(directory)
    stored = stored_tensors(directory / MODEL_FILE)
    with torch.device("meta"), NoInitialisation():
        if isinstance(settings, ModelSettings):
            wanted = Grounder.from_settings(settings).state_dict()
        elif isinstance(settings, TowerOnlySettings):
            wanted = {f"tower.{name}": tensor for name, tensor in OneTower(settings.tower).state_dict().items()}
        elif isinstance(settings, HeadOnlySettings):
            tower = TowerSettings(dim=settings.tower_dim, heads=1)
            whole = Grounder.from_settings(ModelSettings(tower=tower, head=settings.head)).state_dict()
            wanted = {name: tensor for name, tensor in whole.items() if name in stored}  # part of a head is enough
        else:
            assert isinstance(settings, VisualTokenizerSettings)
            wanted = VisualTokenizer(settings).state_dict()
    return [row.sentence() for row in misfits(wanted, stored)]


def _not_finite(directory: Path) -> list[str]:
    problems = []
    for path in (directory / MODEL_FILE, directory / PRETRAINING_HEADS_FILE):
        if not path.is_file():
            continue
        try:
            with safe_open(path, "pt") as file:
                tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a mapping
                problems += [f"{name} holds NaN or infinity" for name, tensor in tensors if not _is_finite(tensor)]
        except DAMAGE as problem:
            problems.append(_line(damaged(path, problem)))
    return problems


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tokenizer_problems(directory: Path) -> list[str]:
    settings = read_any_settings(directory)
    if not isinstance(settings, ModelSettings | TowerOnlySettings):
        return []
    tokenizer = Tokenizer.load(beside(directory, settings.text))
    check_tokenizer(tokenizer, settings.tower, where=str(directory))
    return []
