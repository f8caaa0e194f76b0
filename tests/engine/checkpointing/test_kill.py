"""A run that is killed and resumed ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLOCK = ("seconds", "samples_per_second", "tokens_per_second", "flops_utilisation", "waiting_for_data")
NUM_MOMENTS = 100
"""A run has at least this many moments at which it can be killed."""


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
    """metrics.jsonl without the values that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.split("/")[-1] not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("kill") / "whole"
    assert small_runs.run(out) == [0], small_runs.stderr_of(out)
    return out


@pytest.mark.parametrize("trial", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 10))])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits_after_resuming(small_runs, whole, tmp_path, trial):
    """A moment is the end of a step, or before, in or after a write to disk."""
    out, number = tmp_path / "run", random.Random(trial).randint(1, NUM_MOMENTS)
    assert small_runs.run(out, kill={"number": number}) == [-signal.SIGKILL], small_runs.stderr_of(out)
    began = (out / "run.yaml").is_file()

    assert small_runs.run(out, resume=began, force=not began) == [0], small_runs.stderr_of(out)
    assert equal_bits(final_tensors(out), final_tensors(whole))
    assert lines_of(out) == lines_of(whole)
    assert not list((out / "checkpoints").glob(".*"))


def test_a_run_killed_in_the_middle_of_a_file_keeps_the_checkpoint_before_it(small_runs, whole, tmp_path):
    out = tmp_path / "run"
    assert small_runs.run(out, kill={"in_state_file": 2}) == [-signal.SIGKILL], small_runs.stderr_of(out)
    state = next((out / "checkpoints").glob(".tmp-step-*")) / "state.pt"

    with pytest.raises(RuntimeError):
        torch.load(state, weights_only=True)
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000005"]
    assert small_runs.run(out, resume=True) == [0], small_runs.stderr_of(out)
    assert equal_bits(final_tensors(out), final_tensors(whole))
