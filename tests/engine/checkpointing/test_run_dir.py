"""The run directory is never overwritten by accident, and its run.yaml repeats the run."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from refcli.config.load import load_finetune
from refcli.config.schema import FinetuneSettings, FinetuneTrainSettings
from refcli.engine.checkpointing.run_dir import BadBatch, RunDir, changed_keys
from refcli.errors import TrainingError, UsageError


def open_run(path, settings=None, **how):
    how = {"resume": False, "force": False, "facts": {"store": "S"}, **how}
    return RunDir.open(path, settings or FinetuneSettings(), **how)


def test_run_yaml_repeats_the_run(tmp_path):
    settings = FinetuneSettings(train=FinetuneTrainSettings(steps=3, ema_decay=0.5))
    open_run(tmp_path / "run", settings)

    assert load_finetune(str(tmp_path / "run" / "run.yaml")) == settings


def test_env_json_records_versions_and_facts(tmp_path):
    open_run(tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "env.json").read_text())

    assert {"refcli", "python", "torch", "timm", "threads", "command", "started"} <= facts.keys()
    assert facts["store"] == "S"


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(UsageError, match="not empty"):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_force_removes_the_old_run_and_nothing_else(tmp_path):
    old = open_run(tmp_path / "run")
    old.append_metrics({"step": 1})
    (old.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (old.path / "thesis.tex").write_text("years of work")
    open_run(tmp_path / "run", force=True)

    assert sorted(path.name for path in old.path.iterdir()) == ["env.json", "run.yaml", "thesis.tex"]


def test_there_is_nothing_to_resume_in_an_empty_directory(tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        open_run(tmp_path, resume=True)


def test_resume_and_force_contradict_each_other(tmp_path):
    with pytest.raises(UsageError, match="--force"):
        open_run(tmp_path, resume=True, force=True)


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "run").write_text("")

    with pytest.raises(UsageError, match="a file"):
        open_run(tmp_path / "run")


def test_metrics_after_the_step_and_a_truncated_last_line_are_dropped(tmp_path):
    run = open_run(tmp_path / "run")
    for step in (5, 10, 15):
        run.append_metrics({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    run.drop_metrics_after(10, validated=10)

    assert (run.path / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 10}\n'


def test_a_validation_unknown_to_the_checkpoint_is_dropped(tmp_path):
    run = open_run(tmp_path / "run")
    for line in ({"step": 5, "validation/score": 1}, {"step": 10, "loss": 2}, {"step": 10, "validation/score": 3}):
        run.append_metrics(line)
    run.drop_metrics_after(10, validated=5)

    assert (run.path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 5, "validation/score": 1}',
        '{"step": 10, "loss": 2}',
    ]


def test_a_directory_of_another_user_is_an_error_with_a_hint():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:  # root may write anywhere, so act as another user
            os.seteuid(65534)
        try:
            with pytest.raises(TrainingError, match="cannot be written: Permission denied") as caught:
                open_run(Path(folder) / "run")
        finally:
            if root:
                os.seteuid(0)
        Path(folder).chmod(0o755)

    assert caught.value.where == str(Path(folder) / "run")
    assert "writable" in caught.value.hint


def test_a_full_disk_is_reported_when_a_line_is_due(tmp_path):
    run = open_run(tmp_path / "run")
    (run.path / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written: No space left on device"):
        run.append_metrics({"step": 1})


def test_settings_that_an_older_version_lacked_are_no_change(tmp_path):
    settings = FinetuneSettings(train=FinetuneTrainSettings(steps=3))
    file = open_run(tmp_path / "run", settings).path / "run.yaml"
    known = file.read_text()
    file.write_text(
        "".join(line + "\n" for line in known.splitlines() if "parallel" not in line and "seed" not in line)
    )
    assert file.read_text() != known

    open_run(tmp_path / "run", settings, resume=True)
    assert file.read_text() == known


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    run = open_run(tmp_path / "run")
    (run.path / ".metrics.jsonl.0123456789abcdef.refcli-part").write_text("{")
    open_run(tmp_path / "run", resume=True)

    assert sorted(path.name for path in run.path.iterdir()) == ["env.json", "run.yaml"]


def test_batches_that_are_not_finite_are_recorded_with_their_process(tmp_path):
    run = open_run(tmp_path / "run")
    run.write_non_finite(step=4, batches=[BadBatch(1, {"l1": float("nan"), "l2": 0.5}, ("a", "b"))])

    assert json.loads(run.non_finite_file(4).read_text()) == {
        "step": 4,
        "batches": [{"process": 1, "losses": {"l1": "nan", "l2": "0.5"}, "ids": ["a", "b"]}],
    }


def test_changed_keys_are_dotted_and_see_missing_ones():
    assert changed_keys({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3, "e": 4}}) == ["a.c", "a.e", "d"]
