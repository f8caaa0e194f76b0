"""Checkpoints are complete or absent, few, and loaded without executing anything."""

from __future__ import annotations

import errno
import random
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from refcli.engine.checkpointing import checkpoint
from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.checkpointing.state import (
    BatchLayout,
    Pointer,
    TrainingState,
    capture_rng_state,
    preserve_rng_state,
    restore_rng_state,
)
from refcli.engine.distributed.world import World
from refcli.errors import DataError, ExitCode, TrainingError

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
LAYOUT = BatchLayout(processes=1, batch_size=4, accumulate=2)


def trained_state(step: int, *, width: int = 3, best: Pointer | None = None) -> TrainingState:
    """A state after one AdamW step, so that the optimiser has moments."""
    torch.manual_seed(step)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return TrainingState(
        model, optimizer, nn.Linear(width, 2), step=step, samples=8 * step, seconds=step / 2, best=best
    )


def save(folder: Checkpoints, state: TrainingState) -> None:
    folder.save(state, layout=LAYOUT, world=ALONE)


def names(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@contextmanager
def files_no_larger_than(size: int):
    """A limit of the operating system: writing beyond it fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_saved_state_is_loaded_unchanged(tmp_path):
    folder = Checkpoints(tmp_path)
    saved = trained_state(7, best=Pointer(5, 0.25))
    save(folder, saved)
    drawn = (torch.rand(3), np.random.rand(3), random.random())
    loaded = trained_state(1)

    assert folder.load(7, loaded, world=ALONE) == LAYOUT
    assert (loaded.step, loaded.samples, loaded.seconds, loaded.best) == (7, 56, 3.5, Pointer(5, 0.25))
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


def test_tied_weights_are_saved_under_both_names(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0), None, step=1)

    one, other = tied(), tied()
    save(Checkpoints(tmp_path), one)
    Checkpoints(tmp_path).load(1, other, world=ALONE)

    assert torch.equal(other.objective[0].weight, one.objective[0].weight)
    assert other.objective[1].weight is other.objective[0].weight


def test_only_the_newest_two_and_the_best_are_kept(tmp_path):
    folder = Checkpoints(tmp_path)
    for step in (10, 20, 30, 40, 50):
        save(folder, trained_state(step, best=Pointer(20, 0.9) if step >= 20 else None))

    assert names(tmp_path) == ["best.json", "step-00000020", "step-00000040", "step-00000050"]
    assert (folder.pointer("last"), folder.pointer("best")) == (Pointer(50), Pointer(20, 0.9))


def test_a_missing_best_json_is_written_again_on_resuming(tmp_path):
    folder = Checkpoints(tmp_path)
    save(folder, trained_state(10, best=Pointer(10, 0.5)))
    (tmp_path / "best.json").unlink()

    folder.load(10, trained_state(1), world=ALONE)
    assert folder.pointer("best") == Pointer(10, 0.5)


@pytest.mark.parametrize("broken", ["save_file", "flush_to_disk"])
def test_a_crash_while_saving_leaves_the_last_checkpoint_and_no_other_files(tmp_path, monkeypatch, broken):
    folder = Checkpoints(tmp_path)
    save(folder, trained_state(10))

    def crash(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, crash)
        with pytest.raises(KeyboardInterrupt):
            save(folder, trained_state(20))

    assert names(tmp_path) == ["step-00000010"]
    folder.load(10, trained_state(1), world=ALONE)


def test_the_next_save_removes_half_written_and_half_removed_checkpoints(tmp_path):
    (tmp_path / ".tmp-step-00000010-abc").mkdir()
    (tmp_path / ".tmp-step-00000010-abc" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".old-step-00000005").mkdir()
    (tmp_path / ".best.json.0123456789abcdef.refcli-part").write_text("{")
    save(Checkpoints(tmp_path), trained_state(10))

    assert names(tmp_path) == ["step-00000010"]


@pytest.mark.parametrize(("limit", "culprit"), [(100, "model.safetensors"), (5_000, "state.pt")])
def test_a_full_disk_is_an_error_with_place_and_hint_and_the_last_checkpoint_stays_valid(tmp_path, limit, culprit):
    folder = Checkpoints(tmp_path)
    save(folder, trained_state(10))
    sizes = {file.name: file.stat().st_size for file in folder.path(10).iterdir()}
    with files_no_larger_than(limit), pytest.raises(TrainingError, match="step 20 cannot be written: ") as caught:
        save(folder, trained_state(20))

    assert next(name for name in ("model.safetensors", "ema.safetensors", "state.pt") if sizes[name] > limit) == culprit
    assert caught.value.where == str(folder.path(20))
    assert "--resume" in caught.value.hint
    assert caught.value.exit_code == ExitCode.FAILED
    assert names(tmp_path) == ["step-00000010"]
    loaded = trained_state(1)
    folder.load(10, loaded, world=ALONE)
    assert loaded.step == 10
    save(folder, trained_state(20))
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_the_reason_is_reported_as_the_system_states_it(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"the checkpoint of step 3 cannot be written: No space left on device\n"):
        save(Checkpoints(tmp_path), trained_state(3))


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_names_the_older_one_to_resume_from(tmp_path, file, damage):
    folder = Checkpoints(tmp_path)
    for step in (5, 10):
        save(folder, trained_state(step))
    path = folder.path(10) / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()

    with pytest.raises(DataError, match="damaged") as caught:
        folder.load(10, trained_state(1), world=ALONE)
    assert caught.value.where == str(folder.path(10))
    assert (
        caught.value.hint
        == f"the one of step 5 is complete: remove {folder.path(10)}, and --resume continues from there"
    )


def test_a_damaged_checkpoint_without_a_complete_older_one_has_another_hint(tmp_path):
    folder = Checkpoints(tmp_path)
    for step in (5, 10):
        save(folder, trained_state(step))
        (folder.path(step) / "state.pt").write_bytes(b"")

    with pytest.raises(DataError, match="damaged") as caught:
        folder.load(10, trained_state(1), world=ALONE)
    assert "no older checkpoint" in caught.value.hint


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = Checkpoints(tmp_path)
    save(folder, trained_state(10))

    with pytest.raises(DataError, match="size mismatch"):
        folder.load(10, trained_state(1, width=4), world=ALONE)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    folder = Checkpoints(tmp_path)
    save(folder, trained_state(10))
    torch.save({"step": Evil()}, folder.path(10) / "state.pt")

    with pytest.raises(DataError, match="damaged"):
        folder.load(10, trained_state(1), world=ALONE)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_best_json_is_a_data_error_and_a_removed_best_checkpoint_is_none(tmp_path):
    folder = Checkpoints(tmp_path)
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(DataError, match="best"):
        folder.pointer("best")

    (tmp_path / "best.json").write_text('{"step": 3, "score": 0.5}')
    assert folder.pointer("best") is None


def test_drawing_with_preserved_generators_does_not_change_later_numbers():
    torch.manual_seed(5)
    state = capture_rng_state(CPU)
    expected = torch.rand(2)
    restore_rng_state(state, CPU)
    with preserve_rng_state(CPU):
        torch.rand(9)
        np.random.rand(9)

    assert torch.equal(torch.rand(2), expected)
