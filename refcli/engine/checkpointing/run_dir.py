"""The run directory: settings, environment, metrics, log and checkpoints of one training run."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from refcli.engine.checkpointing.checkpoint import FILES, Checkpoints, explain_run_write_errors
from refcli.errors import ConfigError, DataError, UsageError
from refcli.files import TEMPORARY_SUFFIX, remove_stale_temporaries, write_atomically

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
"""Settings that a resumed run may change."""
HEADER = "# refcli "
"""The start of run.yaml."""
OWN_FILES = ("run.yaml", "env.json", "metrics.jsonl", "log.txt", "checkpoints/best.json")
"""Files of a run, besides those of the patterns below."""
OWN_PATTERNS = (
    re.compile(r"non_finite-step-\d{8,}\.json"),
    re.compile(rf"checkpoints/step-\d{{8,}}/({'|'.join(map(re.escape, FILES.values()))})"),
    re.compile(r"weights/(meta\.json|config\.yaml|tokenizer\.spm|(model|pretraining_heads)\.safetensors)"),
    re.compile(r"tensorboard/events\.out\.tfevents\.[^/]+"),
)
STAGE_FOLDER = re.compile(r"\d+-[a-z0-9][a-z0-9_-]*")
"""The folders below stages/, each of which is a run."""
MAX_FACTS_BYTES = 1 << 20
"""Maximum size of env.json; a longer one is damaged."""
VALIDATION_PREFIX = "validation/"
"""Prefix of validation metrics in metrics.jsonl."""
STAGE_PREFIX = re.compile(r"^stages\.[^.]+\.")
"""Prefix of a setting of a stage."""


@dataclass(frozen=True)
class BadBatch:
    """The batch of one process in a step whose loss is not finite."""

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
        """Start a run directory, or continue an old one.

        Args:
            settings: written to run.yaml.
            resume: continue the run in the directory (without a checkpoint it starts from the beginning).
            force: first remove the files of the run in the directory. Other files stay.
            facts: further entries of env.json (the store, the number of processes).

        Raises:
            UsageError: the directory is not empty, or there is nothing to resume.
            ConfigError: a resumed run with different settings.
            TrainingError: the directory cannot be written.
        """
        if resume and force:
            raise UsageError(
                "--resume continues a run and --force removes it", where=str(path), hint="give only one of them"
            )
        run = cls(path)
        with explain_run_write_errors("the run directory", path):
            if resume:
                run._check_settings(settings)
                remove_stale_temporaries(path)
            else:
                run.check_free(force=force)
                if force:
                    run._remove_own_files()
            path.mkdir(parents=True, exist_ok=True)
            header = f"{HEADER}{refcli.__version__}: give this file as --preset to repeat the run\n"
            write_atomically(path / "run.yaml", (header + explain(settings)).encode())
            write_atomically(path / "env.json", (json.dumps({**environment(), **facts}, indent=2) + "\n").encode())
        return run

    def check_free(self, *, force: bool) -> None:
        """Check that a new run can start in this directory; nothing is changed.

        Args:
            force: an earlier run in it may be removed.

        Raises:
            UsageError: it is a file, or it is not empty; or, with `force`, it is not empty but holds no run.
            TrainingError: it cannot be read.
        """
        with explain_run_write_errors("the run directory", self.path):
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise UsageError("the output is a file, not a directory", where=str(self.path))
            if not self._names() or (force and self._holds_run()):
                return
        if force:
            raise UsageError(
                "the output directory is not empty, and holds no run of refcli that --force could remove",
                where=str(self.path),
                hint="choose another --out, or move these files elsewhere",
            )
        hint = (
            "--resume continues it, --force replaces it"
            if self._holds_run()
            else "choose another --out (it holds no run that --resume could continue or --force replace)"
        )
        raise UsageError("the output directory is not empty", where=str(self.path), hint=hint)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            TrainingError: it cannot be written (as in all writing methods).
        """
        self._append("metrics.jsonl", json.dumps(line))

    def drop_metrics_after(self, step: int, *, validated: int) -> None:
        """Drop the lines that a resumed run will write again: steps after `step`, validations after `validated`."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        kept = ""
        for line in self.metrics():
            is_validation = any(name.startswith(VALIDATION_PREFIX) for name in line)
            kept += json.dumps(line) + "\n" if line["step"] <= (validated if is_validation else step) else ""
        with explain_run_write_errors("the metrics", file):
            write_atomically(file, kept.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, except those that a crash truncated or that hold no metrics of a step.

        Raises:
            DataError: it cannot be read.
        """
        file = self.path / "metrics.jsonl"
        try:
            texts = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []
        except OSError as error:
            raise DataError(f"the metrics cannot be read: {error.strerror}", where=str(file)) from error
        lines: list[dict[str, Any]] = []
        for text in texts:
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and type(line.get("step")) is int:
                    lines.append(line)
        return lines

    def facts(self) -> dict[str, Any]:
        """The entries of env.json; empty if the file is missing or damaged."""
        try:
            with (self.path / "env.json").open("rb") as file:
                facts = json.loads(file.read(MAX_FACTS_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def log(self, text: str) -> None:
        """Add one dated line to log.txt."""
        self._append("log.txt", f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}")

    def non_finite_file(self, step: int) -> Path:
        """The file that records the batches of a step whose loss is not finite."""
        return self.path / f"non_finite-step-{step:08d}.json"

    def write_non_finite(self, *, step: int, batches: Sequence[BadBatch]) -> None:
        """Record the batches whose loss is not finite."""
        parts = [
            {
                "process": batch.process,
                "losses": {name: repr(value) for name, value in batch.losses.items()},
                "ids": list(batch.ids),
            }
            for batch in batches
        ]
        file = self.non_finite_file(step)
        with explain_run_write_errors("the batch", file):
            write_atomically(file, (json.dumps({"step": step, "batches": parts}, indent=2) + "\n").encode())

    def _append(self, name: str, line: str) -> None:
        with explain_run_write_errors(name, self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _check_settings(self, settings: Settings) -> None:
        file = self.path / "run.yaml"
        if not file.exists():
            raise UsageError("there is no run to resume", where=str(file), hint="leave out --resume to start one")
        before = validate(
            type(settings), read_yaml(file), where=str(file)
        )  # with defaults for settings that an older version did not have
        changed = changed_keys(before.model_dump(mode="json"), settings.model_dump(mode="json"))
        forbidden = [key for key in changed if STAGE_PREFIX.sub("", key) not in FREE_TO_CHANGE]
        if forbidden:
            raise ConfigError(
                "a resumed run cannot change " + ", ".join(forbidden),
                where=str(file),
                hint=f"resume with --preset {file}, or start a new run with --init; free to change: "
                + ", ".join(sorted(FREE_TO_CHANGE)),
            )

    def _holds_run(self) -> bool:
        """Whether a run started in this directory: it has the run.yaml and env.json that only a run writes.

        A run that was killed while it wrote these two counts as well; it has no other files.
        """
        try:
            names = self._names()
            settings, environment_file = self.path / "run.yaml", self.path / "env.json"
            has_header = not settings.exists() or settings.read_bytes()[: len(HEADER)] == HEADER.encode()
            facts = json.loads(environment_file.read_bytes()) if environment_file.exists() else {"refcli": None}
        except (OSError, ValueError, RecursionError):
            return False
        is_run = has_header and isinstance(facts, dict) and "refcli" in facts
        return is_run and ({"run.yaml", "env.json"} <= names or names <= {"run.yaml", "env.json"})

    def _names(self) -> set[str]:
        """The entries of this directory, except temporary files of killed processes."""
        return {path.name for path in self.path.iterdir() if not path.name.endswith(TEMPORARY_SUFFIX)}

    def _own_files(self) -> Iterator[Path]:
        """The files in this directory that a run has written; links to folders are not followed."""
        for folder, _, names in os.walk(self.path):  # does not follow links
            place = Path(folder).relative_to(self.path)
            for name in (place / one for one in names):
                text = name.as_posix()
                if text in OWN_FILES or any(pattern.fullmatch(text) for pattern in OWN_PATTERNS):
                    yield self.path / name

    def _remove_own_files(self) -> None:
        """Remove the files of runs, the settings last, and then the folders that are empty."""
        remove_stale_temporaries(self.path)
        self.checkpoints.remove_unfinished()
        stages = self.path / "stages"
        if stages.is_dir() and not stages.is_symlink():
            for stage in sorted(stages.iterdir()):
                if STAGE_FOLDER.fullmatch(stage.name) and not stage.is_symlink() and RunDir(stage)._holds_run():
                    RunDir(stage)._remove_own_files()
                    _remove_if_empty(stage)
        files = list(self._own_files())
        for path in sorted(files, key=lambda path: path.parent == self.path and path.name in ("run.yaml", "env.json")):
            path.unlink()
        folders = {path.parent for path in files} | set(self.checkpoints.root.glob("step-*"))
        folders |= {self.path / name for name in ("checkpoints", "weights", "report", "tensorboard", "stages")}
        for folder in sorted(folders - {self.path}, reverse=True):
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


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
