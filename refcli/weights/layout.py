"""The layout of a weights directory: its files, config.yaml and meta.json, and how they are written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from safetensors import SafetensorError

import refcli
from refcli.config.load import validate
from refcli.config.pretraining import VisualTokenizerSettings
from refcli.config.schema import HeadChoice, ModelSettings, Settings, TextSettings, TowerSettings, Width
from refcli.config.yaml_text import read_mapping
from refcli.errors import WeightsError
from refcli.files import explain_write_errors, share_as_folder, temporary_folder, write_atomically

MODEL_FILE, CONFIG_FILE, META_FILE, TOKENIZER_FILE = "model.safetensors", "config.yaml", "meta.json", "tokenizer.spm"
PRETRAINING_HEADS_FILE = "pretraining_heads.safetensors"
"""Heads that serve pre-training only, under their official names."""
META_SCHEMA = "refcli.weights/1"
MAX_META_BYTES, MAX_META_DEPTH = 8 << 20, 24
"""Limits of meta.json; that of the largest converted model, which names all tensors, has 100 kB."""


class TowerOnlySettings(Settings):
    """The config.yaml of a tower without a head."""

    tower: TowerSettings
    text: TextSettings


class HeadOnlySettings(Settings):
    """The config.yaml of a head, or part of one, without a tower."""

    tower_dim: Width
    """Width of a tower that the tensors fit."""
    head: HeadChoice


AnyWeightsSettings = ModelSettings | TowerOnlySettings | HeadOnlySettings | VisualTokenizerSettings
SettingsT = TypeVar("SettingsT", bound=Settings)
_KIND_BY_KEY: Mapping[str, type[Settings]] = {
    "tower_dim": HeadOnlySettings,
    "head": ModelSettings,
    "tower": TowerOnlySettings,
}
"""The first of these keys in config.yaml decides what the directory holds; without any it is a visual tokenizer."""
_DESCRIPTIONS: Mapping[type[Settings], str] = {
    ModelSettings: "a model",
    TowerOnlySettings: "a tower without a head",
    HeadOnlySettings: "part of a head without a tower",
    VisualTokenizerSettings: "a visual tokenizer",
}


def is_file(path: Path) -> bool:
    """Whether the file exists; unlike `Path.is_file`, False also for a name that is too long for the file system."""
    return os.path.isfile(path)  # noqa: PTH113


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.yaml, not validated.

    Raises:
        WeightsError: it cannot be read, or is not a mapping.
    """
    path = directory / CONFIG_FILE
    try:
        return read_mapping(path, what="config.yaml", error=WeightsError)
    except WeightsError as problem:
        text = "the weights have no readable config.yaml"
        raise WeightsError(text, where=str(path), hint=problem.message) from problem


def kind_of_weights(directory: Path) -> type[Settings]:
    """The class of the settings in config.yaml, which are not validated; errors as `read_config`."""
    return _kind_of(read_config(directory))


def read_any_settings(directory: Path) -> AnyWeightsSettings:
    """The settings in config.yaml, with the tokenizer's path as it is written there.

    Raises:
        WeightsError: config.yaml cannot be read.
        ConfigError: wrong settings.
    """
    values = read_config(directory)
    settings = validate(_kind_of(values), values, where=str(directory / CONFIG_FILE))
    assert isinstance(settings, AnyWeightsSettings)
    return settings


def read_settings_of(
    directory: Path, kind: type[SettingsT], *, wanted: str, hints: Mapping[type[Settings], str]
) -> SettingsT:
    """Like `read_any_settings`, for weights that must be of one kind.

    Args:
        directory: a weights directory.
        kind: one of `AnyWeightsSettings`.
        wanted: that kind in words, for the error.
        hints: the hint of the error for each other kind that needs one.

    Raises:
        WeightsError: config.yaml cannot be read, or the weights are of another kind.
        ConfigError: wrong settings.
    """
    values = read_config(directory)
    found = _kind_of(values)
    if found is not kind:
        raise WeightsError(
            f"these weights are {_DESCRIPTIONS[found]}, not {wanted}", where=str(directory), hint=hints.get(found)
        )
    return validate(kind, values, where=str(directory / CONFIG_FILE))


def _kind_of(config: Mapping[str, Any]) -> type[Settings]:
    return next((kind for key, kind in _KIND_BY_KEY.items() if key in config), VisualTokenizerSettings)


def read_meta(directory: Path) -> dict[str, Any]:
    """The content of meta.json; empty if the file does not exist.

    Raises:
        WeightsError: it cannot be read, or is not a mapping.
    """
    path = directory / META_FILE
    if not is_file(path):
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MAX_META_BYTES + 1)
        if len(text) > MAX_META_BYTES:
            raise ValueError(f"it has more than {MAX_META_BYTES:,} bytes")
        meta = json.loads(text)
        if _is_deeper(meta, MAX_META_DEPTH):
            raise ValueError(f"it has more than {MAX_META_DEPTH} levels of values")
    except (OSError, ValueError, RecursionError) as problem:
        raise WeightsError("meta.json cannot be read", where=str(path), hint=str(problem)) from problem
    if not isinstance(meta, dict):
        raise WeightsError("meta.json is not a mapping of keys to values", where=str(path))
    return meta


def _is_deeper(value: object, levels: int) -> bool:
    """Whether values are nested more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inside)


def write_meta(directory: Path, meta: Mapping[str, object]) -> None:
    """Replace meta.json."""
    write_atomically(directory / META_FILE, (json.dumps(meta, indent=2) + "\n").encode())


explain_weights_write_errors = partial(explain_write_errors, "the weights", also=(SafetensorError,))
"""`explain_write_errors` for weights; safetensors raises its own exception for a failed write."""


def write_directory(directory: Path, files: Mapping[str, bytes], *, kind: str, meta: Mapping[str, object]) -> None:
    """Write meta.json, which states the sha256 of every file, and then the files in order.

    A crash therefore never leaves a directory that seems complete: a file is missing, or its sha256 differs.

    Raises:
        RefcliError: the files cannot be written.
    """
    sha256s = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    stated = {"schema": META_SCHEMA, "refcli": refcli.__version__, "kind": kind, **meta, "files": sha256s}
    with explain_weights_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_meta(directory, stated)
        for name, content in files.items():
            write_atomically(directory / name, content)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block succeeds; `out` must not exist, or be empty.

    Raises:
        RefcliError: the files cannot be written.
    """
    with explain_weights_write_errors(out), exit_on_sigterm():
        out = Path(os.path.realpath(out))  # Path.resolve raises another error for links that form a loop
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as folder:
            yield folder
            for path in folder.iterdir():
                share_as_folder(path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if out.is_dir():
                out.rmdir()
            folder.replace(out)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside the block, so that temporary files are removed; other handlers stay."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    would_kill = on_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if would_kill:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if would_kill:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # the status that a shell gives a program ended by a signal
