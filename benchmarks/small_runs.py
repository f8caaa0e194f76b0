"""Shared by the comparisons of small models: a small tower, resumable `refcli` runs, and means with their spread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODEL = (
    "model.tower.image_size=96",
    "model.tower.patch_size=12",
    "model.tower.dim=128",
    "model.tower.layers=5",
    "model.tower.heads=4",
    "model.tower.ffn_dim=512",
)
SCENES_SEED, TEST_SEED = 11, 12
TRAIN, TEST = "synthetic:few", "synthetic:test"


def prepare(store: Path, *, scenes: int, test_scenes: int) -> None:
    """Draw the training and test scenes, with different seeds, unless they exist."""
    for split, size, seed in ((TRAIN, scenes, SCENES_SEED), (TEST, test_scenes, TEST_SEED)):
        name = split.partition(":")[2]
        if not (store / "synthetic" / f"{name}.parquet").is_file():
            refcli("prepare-data", "synthetic", "--out", store, "--split", name, "--size", size, "--seed", seed)


def train(command: str, preset: object, run: Path, store: Path, settings: Sequence[str], *more: object) -> None:
    """One training run on TRAIN, unless its weights exist; an interrupted one is resumed."""
    if (run / "weights" / "model.safetensors").is_file():
        return
    overrides = [part for setting in (f'data.train=["{TRAIN}"]', *settings) for part in ("--set", setting)]
    start = ["--resume"] if (run / "run.yaml").is_file() else []
    refcli(command, "--preset", preset, "--data", store, "--out", run, *overrides, *more, *start)


def evaluate(weights: Path, store: Path, *more: object) -> str:
    """The JSON document of `refcli evaluate` on TEST."""
    return refcli("evaluate", "--weights", weights, "--data", store, "--split", TEST, "--json", *more)


def read_or_make(path: Path, make: Callable[[], str]) -> Any:
    """The content of a JSON file; if it does not exist, it is made and written first."""
    if not path.is_file():
        text = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)
    return json.loads(path.read_text())


def refcli(*arguments: object) -> str:
    """Run one command; returns its stdout."""
    command = [sys.executable, "-m", "refcli", *map(str, arguments)]
    log("$ refcli " + " ".join(map(str, arguments)))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout


def percent(fractions: Sequence[float | None]) -> str:
    """Mean and standard deviation over the seeds, in percent; a dash without measurements."""
    figures = [100 * fraction for fraction in fractions if fraction is not None]
    if not figures:
        return "-"
    spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
    return f"{statistics.mean(figures):.1f} ± {spread:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def log(text: str) -> None:
    """Write to stderr; only the tables go to stdout."""
    print(text, file=sys.stderr, flush=True)
