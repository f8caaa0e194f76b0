"""Checkpoints: written completely or not at all, loaded without executing anything."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refcli.data.reading.torch_files import container_of, survey_torch_file
from refcli.engine.checkpointing.state import (
    EMA,
    MODEL,
    REST,
    BatchLayout,
    Pointer,
    TrainingState,
    capture_state,
    restore_state,
)
from refcli.engine.distributed.world import World
from refcli.engine.stopping import failing_together
from refcli.errors import DataError, TrainingError
from refcli.files import explain_write_errors, remove_stale_temporaries, share_as_folder, write_atomically

explain_run_write_errors = partial(
    explain_write_errors, error=TrainingError, also=(RuntimeError, SafetensorError), can_resume=True
)
"""`explain_write_errors` for a training run; torch and safetensors raise their own for failed writes."""

FILES = {MODEL: "model.safetensors", EMA: "ema.safetensors", REST: "state.pt"}
NUM_KEPT = 2
"""The newest checkpoints that stay on disk, besides the best one."""
NAME = re.compile(r"step-(\d{8,})")
UNFINISHED = re.compile(r"\.(tmp|old)-step-\d{8,}")
STATE_NAMES = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_tensor_v2|(cuda\.|storage\.)?\w+Storage|Size|device|\w+\d+|bool)"
)
"""Pickle globals that the file of plain values may use; the last are dtypes."""


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-00001234/` directories, and `best.json`, which names one of them.

    A directory gets its name once everything in it is on disk: every named one is complete, and the newest is the last.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = (NAME.fullmatch(path.name) for path in self.root.glob("step-*") if _holds_part(path))
        return sorted(int(name.group(1)) for name in names if name)

    def pointer(self, name: Literal["last", "best"]) -> Pointer | None:
        """The last or the best checkpoint; None where there is none.

        Raises:
            DataError: best.json is damaged.
        """
        if name == "last":
            steps = self.steps()
            return Pointer(steps[-1]) if steps else None
        file = self.root / "best.json"
        if not file.exists():
            return None
        try:
            pointer = Pointer(**json.loads(file.read_text(encoding="utf-8")))
            if type(pointer.step) is not int or not isinstance(pointer.score, int | float | None):
                raise ValueError("a step must be a whole number and a score must be a number")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                "the file that names the best checkpoint cannot be read",
                where=str(file),
                hint="remove the file; --resume writes it again",
            ) from error
        return pointer if pointer.step in self.steps() else None

    def save(self, state: TrainingState, *, layout: BatchLayout, world: World) -> None:
        """Write the checkpoint of `state.step` and remove old ones. Every process must call it; the main one writes.

        Raises:
            TrainingError: it cannot be written; the earlier checkpoints are unchanged.
        """
        parts = capture_state(state, layout, world)
        with failing_together(world):
            if world.is_main:
                target = self.path(state.step)
                with explain_run_write_errors(f"the checkpoint of step {state.step}", target):
                    self._write(target, parts)
                    self.write_best(state.best)
                    self.remove_old(state.best)

    def load(self, step: int, state: TrainingState, *, world: World) -> BatchLayout:
        """Restore `state` from a checkpoint, see `restore_state`; returns the layout that it was saved with.

        Raises:
            DataError: a file is missing, damaged, or belongs to another model.
        """
        with failing_together(world):
            parts = self._read_parts(step, state.parts)
        try:
            layout = restore_state(parts, state, world)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise DataError(
                f"the checkpoint does not fit: {type(error).__name__}: {error}",
                where=str(self.path(step)),
                hint="it belongs to another model or another version of refcli; start again with --force",
            ) from error
        if world.is_main:
            self.write_best(state.best)
        return layout

    def write_best(self, best: Pointer | None) -> None:
        """Write best.json, for readers; training itself uses the state."""
        if best is not None:
            file = self.root / "best.json"
            with explain_run_write_errors("the file that names the best checkpoint", file):
                write_atomically(file, (json.dumps(asdict(best)) + "\n").encode())

    def _write(self, target: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".tmp-{target.name}-{secrets.token_hex(8)}"
        temporary.mkdir()
        try:
            for part, content in parts.items():
                file = temporary / FILES[part]
                if part == REST:
                    torch.save(content, file)
                else:
                    save_file(_unshared(content), file)
                    share_as_folder(file)
                flush_to_disk(file)
            flush_to_disk(temporary)
            temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_to_disk(self.root)

    def _read_parts(self, step: int, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        try:
            return {name: self._read(step, name) for name in names}
        except DataError as error:
            raise DataError(error.message, where=error.where, hint=self._fallback_hint(step, names)) from error

    def _read(self, step: int, part: str) -> dict[str, Any]:
        """A part of a checkpoint.

        Raises:
            DataError: damaged, or it holds other objects than tensors and plain values, which are never built.
        """
        file = self.path(step) / FILES[part]
        try:
            content: object = _read_plain(file) if part == REST else load_file(file)
        except Exception as error:  # a broken or hostile file can fail in any way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"the checkpoint is damaged: {reason}", where=str(self.path(step))) from error
        if not isinstance(content, dict):
            raise DataError(
                f"the checkpoint is damaged: {file.name} does not hold named values", where=str(self.path(step))
            )
        return content

    def remove_unfinished(self) -> None:
        """Remove checkpoints that killed processes left half-written or half-removed."""
        for path in self.root.glob(".*-step-*"):
            if UNFINISHED.match(path.name):
                shutil.rmtree(path)
        remove_stale_temporaries(self.root)

    def remove_old(self, best: Pointer | None) -> None:
        """Remove unfinished checkpoints, and all others except the newest and the best.

        A checkpoint directory with foreign files stays.
        """
        self.remove_unfinished()
        steps = self.steps()
        kept = {*steps[-NUM_KEPT:], *([best.step] if best else [])}
        for path in (self.path(step) for step in steps if step not in kept):
            if {file.name for file in path.iterdir()} <= set(FILES.values()):
                shutil.rmtree(path.rename(self.root / f".old-{path.name}"))  # a half-removed one must not keep its name

    def _fallback_hint(self, step: int, names: tuple[str, ...]) -> str:
        """A hint for a damaged checkpoint: the newest older one that can be read."""
        for older in reversed([other for other in self.steps() if other < step]):
            try:
                for name in names:
                    self._read(older, name)
            except DataError:
                continue
            return f"the one of step {older} is complete: remove {self.path(step)}, and --resume continues from there"
        return "no older checkpoint is complete; start again with --force"


def _read_plain(file: Path) -> object:
    """Tensors and plain values that torch.save wrote."""
    found = survey_torch_file(file, container_of(file, error=DataError), error=DataError)
    if foreign := sorted(
        f"{module}.{name}" for module, name in found.names if not STATE_NAMES.fullmatch(f"{module}.{name}")
    ):
        raise DataError(f"it refers to {foreign[0][:200]!a}")
    return torch.load(file, map_location="cpu", weights_only=True)


def _holds_part(folder: Path) -> bool:
    """Whether a folder holds any file of a checkpoint, and not only foreign files."""
    return any((folder / name).exists() for name in FILES.values())


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without shared memory, as safetensors requires; tied weights are stored under each name."""
    unshared: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        contiguous = tensor.contiguous()
        address = contiguous.untyped_storage().data_ptr()
        unshared[name] = contiguous.clone() if address in addresses else contiguous
        addresses.add(address)
    return unshared


def flush_to_disk(path: Path) -> None:
    """Flush a file or directory to disk before anything refers to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
