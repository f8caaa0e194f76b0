"""Several processes train as one, stop as one and resume as one."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from refcli.losses.averages import mean_over

PLAIN = ["model.tower.drop_path=0", "train.steps=6", "train.save_every=3", "data.workers=0"]
LOSSES = ("box_l1", "box_giou", "similarity_focal", "similarity_dice", "existence_bce", "loss", "grad_norm")


def losses_of(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in LOSSES] for line in lines if "loss" in line]


def weights_of(run: Path, step: int, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / file)


def equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
def test_two_processes_with_half_of_the_batch_equal_one_process_with_all_of_it(small_runs, tmp_path, optimizer):
    """In fp32 only the order of the sums differs. AdamW divides by the size of the gradient, which magnifies that."""
    common = [*PLAIN, f"optim.name={optimizer}", "optim.lr=0.01"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert small_runs.run(one, settings=[*common, "train.batch_size=8"]) == [0], small_runs.stderr_of(one)
    assert small_runs.run(two, settings=[*common, "train.batch_size=4"], size=2) == [0, 0], small_runs.stderr_of(two)

    torch.testing.assert_close(torch.tensor(losses_of(two)), torch.tensor(losses_of(one)), rtol=1e-4, atol=5e-6)
    tolerance = {"sgd": 1e-6, "adamw": 2e-5}[optimizer]
    for file in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(weights_of(two, 6, file), weights_of(one, 6, file), rtol=0, atol=tolerance)


def test_two_processes_with_a_sharded_model_equal_one_process_and_save_the_same(small_runs, tmp_path):
    common = [*PLAIN, "optim.name=sgd", "optim.lr=0.01", "train.parallel=fsdp", "train.accumulate=2"]
    one, two, longer = tmp_path / "one", tmp_path / "two", ["train.steps=7"]
    assert small_runs.run(one, settings=[*common, "train.batch_size=8"]) == [0], small_runs.stderr_of(one)
    assert small_runs.run(two, settings=[*common, "train.batch_size=4"], size=2) == [0, 0], small_runs.stderr_of(two)

    torch.testing.assert_close(torch.tensor(losses_of(two)), torch.tensor(losses_of(one)), rtol=1e-4, atol=5e-6)
    for file in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(weights_of(two, 6, file), weights_of(one, 6, file), rtol=0, atol=1e-6)
    settings = [*common, "train.batch_size=4", *longer]
    assert small_runs.run(two, settings=settings, resume=True, size=2) == [0, 0], small_runs.stderr_of(two)
    assert small_runs.run(one, settings=[*common, "train.batch_size=8", *longer], resume=True) == [0]
    torch.testing.assert_close(weights_of(two, 7), weights_of(one, 7), rtol=0, atol=1e-6)


def test_the_accumulated_batches_of_two_processes_are_one_large_batch(small_runs, tmp_path):
    """Without losses that skip samples: accumulated batches are averaged regardless of how many samples count."""
    common = [
        *PLAIN,
        "optim.name=sgd",
        "model.head.settings.rec=false",
        "model.head.settings.loss_weights.similarity_dice=0",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    assert small_runs.run(one, settings=[*common, "train.batch_size=12"]) == [0], small_runs.stderr_of(one)
    split = [*common, "train.batch_size=3", "train.accumulate=2"]
    assert small_runs.run(two, settings=split, size=2) == [0, 0], small_runs.stderr_of(two)

    torch.testing.assert_close(weights_of(two, 6), weights_of(one, 6), rtol=0, atol=1e-6)


def test_a_signal_to_any_process_stops_all_and_the_resumed_world_ends_with_the_same_bits(small_runs, tmp_path):
    whole, parts, elastic = (tmp_path / name for name in ("whole", "parts", "elastic"))
    assert small_runs.run(whole, size=2) == [0, 0], small_runs.stderr_of(whole)
    assert small_runs.run(parts, size=2, stop=(4, signal.SIGUSR1)) == [75, 75], small_runs.stderr_of(parts)
    shutil.copytree(parts, elastic)
    assert small_runs.run(parts, size=2, resume=True) == [0, 0], small_runs.stderr_of(parts)

    assert len(losses_of(elastic)) == 4
    assert losses_of(parts) == losses_of(whole)
    for file in ("model.safetensors", "ema.safetensors"):
        assert equal_bits(weights_of(parts, 30, file), weights_of(whole, 30, file)), "drop-path differs by process"

    stopped = len(losses_of(elastic))
    settings = [f"train.steps={stopped + 1}"]
    assert small_runs.run(elastic, resume=True, settings=settings) == [0], small_runs.stderr_of(elastic)
    assert (
        f"changed from 2 to 1: training continues at sample {8 * stopped} with 4 samples per step"
        in small_runs.stderr_of(elastic)
    )
    assert all(math.isfinite(value) for value in losses_of(elastic)[-1])


def test_a_loss_that_is_not_finite_in_one_process_stops_all_and_names_its_samples(small_runs, tmp_path):
    out = tmp_path / "run"
    codes = small_runs.run(out, size=2, settings=[*PLAIN, "train.steps=30"], poisoned=17)

    assert codes == [1, 1], small_runs.stderr_of(out)
    (record,) = out.glob("non_finite-step-*.json")
    (batch,) = json.loads(record.read_text())["batches"]
    assert "scene 17" in batch["ids"]
    assert len(batch["ids"]) == 4
    for rank in (0, 1):
        assert "a loss is not finite at step" in small_runs.stderr_of(out, rank)


def test_a_validation_that_fails_in_the_main_process_stops_all(small_runs, tmp_path):
    out = tmp_path / "run"
    codes = small_runs.run(out, size=2, settings=[*PLAIN, "train.validate_every=2"], fails_to_validate=True)

    assert codes == [5, 5], small_runs.stderr_of(out)
    assert "another process failed" in small_runs.stderr_of(out, 1)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_process_changes_no_mean(group):
    values, counts = torch.tensor([1.0, 100.0, 3.0]), torch.tensor([True, False, True])

    assert mean_over(values, counts) == 2.0
    assert mean_over(values, torch.zeros(3, dtype=torch.bool)) == 0.0


def test_nothing_is_communicated_without_gradients(group, monkeypatch):
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: calls.append(tensor))
    values, counts = torch.tensor([1.0, 3.0]), torch.tensor([True, True])
    with torch.no_grad():
        mean_over(values, counts)
    with torch.inference_mode():
        mean_over(values, counts)
    assert not calls

    mean_over(values, counts)
    assert [int(tensor) for tensor in calls] == [2]
