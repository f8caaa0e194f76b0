"""The run directory: settings, environment, metrics, log and checkpoints of one training run."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import safetensors
import timm
import torch

import refcli
from refcli.config.explain import explain
from refcli.config.load import read_yaml
from refcli.config.schema import Settings
from refcli.engine.checkpoint import Checkpoints
from refcli.errors import ConfigError, UsageError
from refcli.files import write_atomically

FREE_TO_CHANGE = frozenset(
    {
        "train.steps",
        "train.log_every",
        "train.save_every",
        "train.validate_every",
        "train.device",
        "data.workers",
    }
)
"""Settings that a resumed run may have otherwise than the run it continues."""
OWN_ENTRIES = ("run.yaml", "env.json", "metrics.jsonl", "log.txt", "checkpoints", "weights", "report")


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
        """
        if resume and force:
            raise UsageError(
                "--resume continues a run and --force removes it", where=str(path), hint="give one of them"
            )
        run = cls(path)
        if resume:
            run._check_settings(settings)
        elif path.exists() and not path.is_dir():
            raise UsageError("the output is a file, not a directory", where=str(path))
        elif path.exists() and any(path.iterdir()):
            if not force:
                raise UsageError(
                    "the output directory is not empty",
                    where=str(path),
                    hint="--resume continues it, --force replaces it",
                )
            run._remove_own_entries()
        path.mkdir(parents=True, exist_ok=True)
        header = f"# refcli {refcli.__version__}: give this file as --preset to repeat the run\n"
        write_atomically(path / "run.yaml", (header + explain(settings)).encode())
        write_atomically(path / "env.json", (json.dumps({**environment(), **facts}, indent=2) + "\n").encode())
        return run

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_atomically(file, ("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step)).encode())

    def log(self, text: str) -> None:
        """Add one dated line to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    def write_non_finite(self, *, step: int, ids: tuple[str, ...], losses: Mapping[str, float]) -> Path:
        """Record the batch whose loss is not a number; returns the file."""
        file = self.path / f"non_finite-step-{step:08d}.json"
        values = {name: repr(value) for name, value in losses.items()}
        write_atomically(
            file, (json.dumps({"step": step, "losses": values, "ids": list(ids)}, indent=2) + "\n").encode()
        )
        return file

    def _check_settings(self, settings: Settings) -> None:
        file = self.path / "run.yaml"
        if not file.exists():
            raise UsageError("there is no run to resume", where=str(file), hint="leave out --resume to start one")
        changed = changed_keys(read_yaml(file), settings.model_dump(mode="json"))
        forbidden = [key for key in changed if key not in FREE_TO_CHANGE]
        if forbidden:
            raise ConfigError(
                "a resumed run cannot change " + ", ".join(forbidden),
                where=str(file),
                hint=f"resume with --preset {file}, or start a new run with --init; free to change: "
                + ", ".join(sorted(FREE_TO_CHANGE)),
            )

    def _remove_own_entries(self) -> None:
        for path in (*(self.path / name for name in OWN_ENTRIES), *self.path.glob("non_finite-step-*.json")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
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
        "timm": str(timm.__version__),
        "numpy": numpy.__version__,
        "safetensors": str(safetensors.__version__),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
        "started": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
    }
