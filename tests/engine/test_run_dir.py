"""The run directory is never overwritten by accident and repeats itself from run.yaml."""

from __future__ import annotations

import json

import pytest

from refcli.config.load import load_finetune
from refcli.config.schema import FinetuneSettings, TrainSettings
from refcli.engine.run_dir import RunDir, changed_keys
from refcli.errors import UsageError


def open_run(path, settings=None, **how):
    how = {"resume": False, "force": False, "facts": {"store": "S"}, **how}
    return RunDir.open(path, settings or FinetuneSettings(), **how)


def test_run_yaml_repeats_the_run(tmp_path):
    settings = FinetuneSettings(train=TrainSettings(steps=3, ema_decay=0.5))
    open_run(tmp_path / "run", settings)

    assert load_finetune(str(tmp_path / "run" / "run.yaml")) == settings


def test_env_json_tells_versions_and_facts(tmp_path):
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


def test_forgotten_metrics_are_those_after_the_step_and_a_torn_last_line(tmp_path):
    run = open_run(tmp_path / "run")
    for step in (5, 10, 15):
        run.append_metrics({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    run.forget_metrics_after(10)

    assert (run.path / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 10}\n'


def test_changed_keys_are_dotted_and_see_missing_ones():
    assert changed_keys({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3, "e": 4}}) == ["a.c", "a.e", "d"]
