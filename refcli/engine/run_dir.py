"""The run directory: settings, environment, metrics, log and checkpoints of one training run."""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch

import refcli
from refcli.config.explain import explain
from refcli.config.load import read_yaml, validate
from refcli.config.schema import Settings
from refcli.engine.checkpoint import Checkpoints
from refcli.engine.writing import write_errors_told
from refcli.errors import ConfigError, UsageError
from refcli.files import write_atomically

FREE_TO_CHANGE = frozenset(
    {
        "train.steps",
        "train.log_every",
        "train.save_every",
        "train.validate_every",
        "train.keep",
        "train.patience",
        "train.device",
        "train.parallel",
        "train.tensorboard",
        "data.workers",
    }
)
"""Settings that a resumed run may have otherwise than the run it continues."""
OWN_ENTRIES = (
    "run.yaml",
    "env.json",
    "metrics.jsonl",
    "log.txt",
    "checkpoints",
    "weights",
    "report",
    "tensorboard",
    "stages",
)
VALIDATION_PREFIX = "validation/"
"""What the names of validation metrics begin with in metrics.jsonl."""
STAGE_PREFIX = re.compile(r"^stages\.[^.]+\.")
"""What a setting of a stage has before the name that it has elsewhere."""


@dataclass(frozen=True)
class BadBatch:
    """The part of a process in a step whose loss is not a number."""

    process: int
    losses: dict[str, float]
    ids: tuple[str, ...]


class RunDir:
    """`<out>/{run.yaml, env.json, metrics.jsonl, log.txt, checkpoints/, weights/}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    @classmethod
    def open(cls, path: Path, settings: Settings, *, resume: bool, force: bool, facts: Mapping[str, Any]) -> RunDir:
        """Start a run directory, or take up an old one.

        Args:
            settings: what the run does; written to run.yaml.
            resume: continue the run that is in there (a directory without a checkpoint starts from the beginning).
            force: remove the run that is in there first. Other files are left alone.
            facts: what else env.json shall hold (the store, the command).

        Raises:
            UsageError: the directory is not empty, or there is nothing to resume.
            ConfigError: a resumed run with other settings.
            TrainingError: the directory cannot be written.
        """
        if resume and force:
            raise UsageError(
                "--resume continues a run and --force removes it", where=str(path), hint="give one of them"
            )
        run = cls(path)
        with write_errors_told("the run directory", path):
            if resume:
                run._check_settings(settings)
                run._remove_unfinished()
            else:
                run.check_free(force=force)
                if force:
                    run._remove_own_entries()
            path.mkdir(parents=True, exist_ok=True)
            header = f"# refcli {refcli.__version__}: give this file as --preset to repeat the run\n"
            write_atomically(path / "run.yaml", (header + explain(settings)).encode())
            write_atomically(path / "env.json", (json.dumps({**environment(), **facts}, indent=2) + "\n").encode())
        return run

    def check_free(self, *, force: bool) -> None:
        """Refuse a place where a new run cannot begin; nothing is changed.

        Args:
            force: a run that is there may be removed.

        Raises:
            UsageError: it is a file, or it is not empty.
            TrainingError: it cannot be looked into.
        """
        with write_errors_told("the run directory", self.path):
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise UsageError("the output is a file, not a directory", where=str(self.path))
            if not force and any(self.path.iterdir()):
                raise UsageError(
                    "the output directory is not empty",
                    where=str(self.path),
                    hint="--resume continues it, --force replaces it",
                )

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            TrainingError: it cannot be written; this goes for all files below.
        """
        self._append("metrics.jsonl", json.dumps(line))

    def forget_metrics_after(self, step: int, *, validated: int) -> None:
        """Drop the lines of what a resumed run will do again: steps after `step`, validations after `validated`."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        kept = ""
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text) if text.endswith("}") else {"step": math.inf}  # cut off by a crash
            is_validation = any(name.startswith(VALIDATION_PREFIX) for name in line)
            kept += text + "\n" if line["step"] <= (validated if is_validation else step) else ""
        with write_errors_told("the metrics", file):
            write_atomically(file, kept.encode())

    def log(self, text: str) -> None:
        """Add one dated line to log.txt."""
        self._append("log.txt", f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}")

    def non_finite_file(self, step: int) -> Path:
        """Where the batches of a step are recorded whose loss is not a number."""
        return self.path / f"non_finite-step-{step:08d}.json"

    def write_non_finite(self, *, step: int, batches: Sequence[BadBatch]) -> None:
        """Record the batches whose loss is not a number."""
        parts = [
            {
                "process": batch.process,
                "losses": {name: repr(value) for name, value in batch.losses.items()},
                "ids": list(batch.ids),
            }
            for batch in batches
        ]
        file = self.non_finite_file(step)
        with write_errors_told("the batch", file):
            write_atomically(file, (json.dumps({"step": step, "batches": parts}, indent=2) + "\n").encode())

    def _append(self, name: str, line: str) -> None:
        with write_errors_told(name, self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _check_settings(self, settings: Settings) -> None:
        file = self.path / "run.yaml"
        if not file.exists():
            raise UsageError("there is no run to resume", where=str(file), hint="leave out --resume to start one")
        before = validate(type(settings), read_yaml(file), where=str(file))  # completes what an older version wrote
        changed = changed_keys(before.model_dump(mode="json"), settings.model_dump(mode="json"))
        forbidden = [key for key in changed if STAGE_PREFIX.sub("", key) not in FREE_TO_CHANGE]
        if forbidden:
            raise ConfigError(
                "a resumed run cannot change " + ", ".join(forbidden),
                where=str(file),
                hint=f"resume with --preset {file}, or start a new run with --init; free to change: "
                + ", ".join(sorted(FREE_TO_CHANGE)),
            )

    def _remove_own_entries(self) -> None:
        self._remove_unfinished()
        for path in (*(self.path / name for name in OWN_ENTRIES), *self.path.glob("non_finite-step-*.json")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()

    def _remove_unfinished(self) -> None:
        """Remove what `write_atomically` had not finished when its process was killed."""
        for name in OWN_ENTRIES:
            for path in self.path.glob(f".{name}.*"):
                path.unlink()


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, or that only one side has."""
    changed: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        here, there = old.get(key), new.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            changed += changed_keys(here, there, f"{prefix}{key}.")
        elif key not in old or key not in new or here != there:
            changed.append(prefix + key)
    return changed


def environment() -> dict[str, Any]:
    """Versions and hardware, for env.json."""
    return {
        "refcli": refcli.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "numpy": numpy.__version__,
        "safetensors": str(safetensors.__version__),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
        "started": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
    }
