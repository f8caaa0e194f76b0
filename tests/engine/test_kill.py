"""A run that is killed without warning and resumed ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLOCK = ("seconds", "samples_per_second", "tokens_per_second", "flops_utilisation", "waiting_for_data")
WRITE_SECONDS = 0.01


def final_tensors(run: Path, step: int = 30) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and optimiser state at the end."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    moments = torch.load(folder / "state.pt", weights_only=True)["optimizer"]["state"]
    return {
        **{f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()},
        **{f"ema.{name}": value for name, value in load_file(folder / "ema.safetensors").items()},
        **{f"{key}.{name}": value for key, values in moments.items() for name, value in values.items()},
    }


def equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def lines_of(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.split("/")[-1] not in CLOCK} for line in lines]


def num_lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


class Saves:
    """Counts the checkpoints that a run begins to write."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.seen: set[str] = set()

    def have_begun(self, number: int) -> bool:
        self.seen |= {path.name for path in (self.run / "checkpoints").glob(".tmp-step-*")}
        return len(self.seen) >= number


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory) -> Path:
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("kill") / "whole"
    assert small_runs.run(out) == [0], small_runs.said(out)
    return out


@pytest.mark.parametrize("trial", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 10))])
def test_killed_at_a_random_moment_and_resumed_the_bits_are_the_same(small_runs, whole, tmp_path, trial):
    """Every second trial is killed while a checkpoint is being written."""
    out, moments = tmp_path / "run", random.Random(trial)
    (process,) = small_runs.start(out, write_seconds=WRITE_SECONDS)
    if trial % 2:
        number = moments.randint(1, 5)
        small_runs.wait_until(partial(Saves(out).have_begun, number))
        time.sleep(moments.uniform(0, 6 * WRITE_SECONDS))
    else:
        number = moments.randint(0, 25)
        small_runs.wait_until(lambda: num_lines(out) >= number)
        time.sleep(moments.uniform(0, 0.02))
    os.kill(process, signal.SIGKILL)
    assert small_runs.wait([process]) == [-signal.SIGKILL], "it was not over yet"
    began = (out / "run.yaml").is_file()

    assert small_runs.run(out, resume=began, force=not began) == [0], small_runs.said(out)
    assert equal_bits(final_tensors(out), final_tensors(whole))
    assert lines_of(out) == lines_of(whole)
    assert not list((out / "checkpoints").glob(".*"))


def test_killed_in_the_middle_of_a_file_leaves_the_checkpoint_before_it_whole(small_runs, whole, tmp_path):
    out = tmp_path / "run"
    (process,) = small_runs.start(out, write_seconds=0.2)
    small_runs.wait_until(partial(Saves(out).have_begun, 2))
    state = next((out / "checkpoints").glob(".tmp-step-*")) / "state.pt"
    small_runs.wait_until(lambda: state.exists() and state.stat().st_size > 0)
    os.kill(process, signal.SIGKILL)
    small_runs.wait([process])

    with pytest.raises(RuntimeError):
        torch.load(state, weights_only=True)
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000005"]
    assert small_runs.run(out, resume=True) == [0], small_runs.said(out)
    assert equal_bits(final_tensors(out), final_tensors(whole))
