"""A run that was stopped, killed or could not write resumes as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from torch import nn

from refcli.engine.checkpointing import checkpoint
from refcli.engine.stopping import StoppedError
from refcli.errors import ConfigError, DataError, ExitCode, TrainingError


def metrics_of(run):
    """metrics.jsonl without the values that depend on the clock."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "samples_per_second", "waiting_for_data", "validation/seconds")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def equal_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(here, there) for here, there in pairs)


def stopping_at(make_batch, number, which):
    """A stream that sends this process a signal while it delivers batch `number`."""

    def batch(current):
        if current == number:
            os.kill(os.getpid(), which)
        return make_batch(current)

    return batch


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("which", "code", "step"),
    [
        (signal.SIGTERM, 75, 7),
        (signal.SIGUSR1, 75, 8),  # when a validation is due
        (signal.SIGINT, 130, 12),  # the last one
    ],
)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    run_training, batch_of, notes, which, code, step, optimizer
):
    def validate(model):
        return {"score": -float(model(batch_of(10**6), 0)["l2"])}

    common = {"validate": validate, "optim": {"name": optimizer}, "changes": {"validate_every": 4}}
    whole, whole_average, whole_run = run_training("whole", **common)

    with pytest.raises(StoppedError) as caught:
        run_training("parts", batch=stopping_at(batch_of, 2 * step - 1, which), **common)
    assert caught.value.exit_code == ExitCode(code)
    assert caught.value.step == step, "a step has two batches, and is finished"
    notes.started_at.clear()
    resumed, resumed_average, resumed_run = run_training("parts", resume=True, **common)

    assert notes.started_at == [step]
    assert equal_bits(resumed, whole)
    assert equal_bits(resumed_average, whole_average)
    assert metrics_of(resumed_run) == metrics_of(whole_run)
    state, other = (
        torch.load(run.checkpoints.path(12) / "state.pt", weights_only=True) for run in (resumed_run, whole_run)
    )
    for key, values in state["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["optimizer"]["state"][key][name]))
    assert torch.equal(state["generators"][0]["torch"], other["generators"][0]["torch"])
    assert state["samples"] == other["samples"]
    assert resumed_run.checkpoints.pointer("best") == whole_run.checkpoints.pointer("best")


def test_a_killed_run_repeats_unsaved_steps_and_ends_the_same(run_training, batch_of):
    class KilledError(Exception):
        pass

    def killing(number):
        if number == 17:
            raise KilledError
        return batch_of(number)

    whole, _, whole_run = run_training("whole")
    with pytest.raises(KilledError):
        run_training("parts", batch=killing)
    resumed, _, resumed_run = run_training("parts", resume=True)

    assert equal_bits(resumed, whole)
    assert metrics_of(resumed_run) == metrics_of(whole_run), "lines of the repeated steps are not doubled"


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again_without_doubled_lines(run_training, batch_of):
    class KilledError(Exception):
        pass

    def killing(number):
        if number == 7:
            raise KilledError
        return batch_of(number)

    _, _, whole_run = run_training("whole")
    with pytest.raises(KilledError):
        run_training("parts", batch=killing)
    _, _, resumed_run = run_training("parts", resume=True)

    assert metrics_of(resumed_run) == metrics_of(whole_run)


def test_resuming_from_an_older_checkpoint_repeats_the_newer_one(run_training):
    whole, _, _ = run_training("whole", changes={"save_every": 4})
    _, _, run = run_training("parts", changes={"save_every": 4})
    (run.checkpoints.path(12) / "state.pt").write_bytes(b"")

    with pytest.raises(DataError, match="damaged") as caught:
        run_training("parts", resume=True, changes={"save_every": 4})
    assert "step 8 is complete" in caught.value.hint
    shutil.rmtree(run.checkpoints.path(12))
    again, _, _ = run_training("parts", resume=True, changes={"save_every": 4})

    assert equal_bits(again, whole)


def test_a_disk_that_is_full_at_a_later_checkpoint_loses_only_the_steps_since_the_one_before(
    run_training, monkeypatch, notes
):
    whole, _, whole_run = run_training("whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "flush_to_disk", full_after(12))  # five files and folders per checkpoint
        with pytest.raises(TrainingError, match="step 12 cannot be written: No space left on device"):
            run_training("parts")
    notes.started_at.clear()
    resumed, _, resumed_run = run_training("parts", resume=True)

    assert notes.started_at == [10]
    assert equal_bits(resumed, whole)
    assert metrics_of(resumed_run) == metrics_of(whole_run)


def full_after(calls):
    """A stand-in for writing to disk that fails from some call on."""
    left = [calls]

    def sync(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    return sync


def test_another_number_of_processes_continues_at_the_same_sample(run_training, batch_of, notes):
    asked = []
    _, _, run = run_training(changes={"steps": 5})
    file = run.checkpoints.path(5) / "state.pt"
    saved = torch.load(file, weights_only=True)
    assert saved["samples"] == 5 * 2 * 4, "steps times accumulate times batch size"
    torch.save({**saved, "samples": 42, "layout": {"processes": 3, "batch_size": 4, "accumulate": 2}}, file)

    def feed(number):
        asked.append(number)
        return batch_of(number)

    run_training(resume=True, changes={"steps": 6}, batch=feed)

    assert asked[0] == 10, "ten whole batches of four are in 42 samples"
    assert any("changed from 3 to 1: training continues at sample 40" in text for text in notes.noted_texts)


def test_a_resumed_run_with_other_settings_is_refused_by_key(run_training):
    run_training(changes={"steps": 5})

    with pytest.raises(ConfigError, match=r"cannot change optim\.lr, train\.seed\n"):
        run_training(resume=True, optim={"lr": 1.0}, changes={"seed": 4, "steps": 8})


def test_a_resumed_run_may_be_longer_and_log_and_save_at_other_steps(run_training, notes):
    run_training(changes={"steps": 5})
    notes.saved_steps.clear()
    run_training(resume=True, changes={"steps": 9, "log_every": 2, "save_every": 2})

    assert notes.saved_steps == [6, 8, 9]


def test_resuming_a_finished_run_changes_nothing(run_training, notes):
    whole, _, run = run_training()
    before = metrics_of(run)
    again, _, _ = run_training(resume=True)

    assert equal_bits(again, whole)
    assert metrics_of(run) == before
