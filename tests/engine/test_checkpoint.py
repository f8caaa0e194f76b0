"""Checkpoints are whole or absent, few, and loaded without running anything."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from refcli.engine import checkpoint
from refcli.engine.checkpoint import Checkpoints, TrainingState
from refcli.engine.randomness import random_state, restore_random_state, undisturbed_randomness
from refcli.errors import DataError


def trained_state(step: int) -> TrainingState:
    """A state after one AdamW step, so that the optimiser has moments."""
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainingState(model, optimizer, nn.Linear(3, 2), step=step, seconds=step / 2)


def test_what_is_saved_is_loaded(tmp_path):
    folder = Checkpoints(tmp_path)
    saved = trained_state(7)
    folder.save(saved)
    drawn = (torch.rand(3), np.random.rand(3), random.random())
    loaded = trained_state(1)
    folder.load(7, loaded)

    assert (loaded.step, loaded.seconds) == (7, 3.5)
    assert torch.equal(loaded.objective.weight, saved.objective.weight)
    assert torch.equal(loaded.ema.weight, saved.ema.weight)
    assert torch.equal(
        loaded.optimizer.state[loaded.objective.weight]["exp_avg"],
        saved.optimizer.state[saved.objective.weight]["exp_avg"],
    )
    again = (torch.rand(3), np.random.rand(3), random.random())
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]


def test_only_the_newest_two_and_the_best_are_kept(tmp_path):
    folder = Checkpoints(tmp_path)
    for step in (10, 20, 30, 40, 50):
        folder.save(trained_state(step))
        if step == 20:
            folder.mark_best(20, 0.9)

    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000020", "step-00000040", "step-00000050"]
    assert (folder.pointer("last").step, folder.pointer("best").step, folder.pointer("best").score) == (50, 20, 0.9)


@pytest.mark.parametrize("broken", ["save_model", "_sync"])
def test_a_crash_while_saving_leaves_the_last_checkpoint_and_no_rubbish_after_the_next(tmp_path, monkeypatch, broken):
    folder = Checkpoints(tmp_path)
    folder.save(trained_state(10))

    def crash(*arguments):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, crash)
        with pytest.raises(OSError, match="full"):
            folder.save(trained_state(20))

    assert folder.pointer("last").step == 10
    assert not folder.path(20).exists()
    folder.load(10, trained_state(1))
    folder.save(trained_state(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step-00000010", "step-00000020"]


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_a_data_error_with_its_place(tmp_path, file, damage):
    folder = Checkpoints(tmp_path)
    folder.save(trained_state(10))
    path = folder.path(10) / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()

    with pytest.raises(DataError) as caught:
        folder.load(10, trained_state(1))
    assert caught.value.where == str(folder.path(10))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = Checkpoints(tmp_path)
    folder.save(trained_state(10))
    other = nn.Linear(4, 2)

    with pytest.raises(DataError, match="size mismatch"):
        folder.load(10, TrainingState(other, torch.optim.AdamW(other.parameters()), None))


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    folder = Checkpoints(tmp_path)
    folder.save(trained_state(10))
    torch.save({"step": Evil()}, folder.path(10) / "state.pt")

    with pytest.raises(DataError, match="cannot be loaded"):
        folder.load(10, trained_state(1))
    assert not (tmp_path / "ran").exists()


def test_a_damaged_or_dangling_pointer_is_a_data_error(tmp_path):
    folder = Checkpoints(tmp_path)
    (tmp_path / "last.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        folder.pointer("last")

    (tmp_path / "last.json").write_text(json.dumps({"step": 3, "score": None}))
    with pytest.raises(DataError, match="gone"):
        folder.pointer("last")


def test_undisturbed_randomness_hides_what_is_drawn_inside():
    torch.manual_seed(5)
    state = random_state()
    expected = torch.rand(2)
    restore_random_state(state)
    with undisturbed_randomness():
        torch.rand(9)
        np.random.rand(9)

    assert torch.equal(torch.rand(2), expected)
