"""`refcli finetune` with stages and gates, from the command line: one process, two processes, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from refcli.cli.app import run
from refcli.data.sources.synthetic.write import write_synthetic

PRESET = """
extends: synthetic_tiny
data: {workers: 0, validation_samples: 2}
train: {batch_size: 4, log_every: 1, validate_every: null, ema_decay: null, keep: best, best_by: box_iou}
stages:
  frozen: {train: {freeze_tower: true, steps: 2}}
  all: {train: {steps: 3}}
"""


@pytest.fixture
def store(tmp_path) -> Path:
    write_synthetic(tmp_path / "store", size=6, seed=3, splits=["train", "val"])
    return tmp_path / "store"


@pytest.fixture
def preset(tmp_path) -> Path:
    """A run of two stages."""
    (tmp_path / "two.yaml").write_text(PRESET)
    return tmp_path / "two.yaml"


@pytest.fixture
def refcli(tmp_path, monkeypatch, capsys):
    """Run `refcli finetune` in this process: (exit code, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        given = ["refcli", "finetune", *map(str, arguments), "--out", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as caught:
            run()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def in_two_processes(tmp_path):
    """Run `refcli finetune --nproc 2` as a program: (exit code, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "refcli", "finetune", *map(str, arguments), "--out", str(tmp_path / "run")]
        done = subprocess.run([*command, "--nproc", "2"], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return call


def last_step(run: Path) -> int:
    return max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_two_processes_go_through_the_stages_together_and_resume_with_the_same_settings(
    tmp_path, preset, store, in_two_processes
):
    start = ("--preset", preset, "--data", store, "--device", "cpu")
    code, out, stderr = in_two_processes(*start, "--fail-under", "box_iou=0")
    run = tmp_path / "run"

    assert (code, out) == (0, f"{run}\n"), stderr
    assert stderr.index("stage 1 of 2, frozen") < stderr.index("stage 2 of 2, all") < stderr.index("weights: ")
    assert stderr.count("stage 2 of 2, all") == 1
    stages = [run / "stages" / "1-frozen", run / "stages" / "2-all"]
    assert [last_step(stage) for stage in stages] == [2, 3]
    assert {json.loads((path / "env.json").read_text())["processes"] for path in (run, *stages)} == {2}
    assert (run / "weights" / "model.safetensors").is_file()

    code, out, stderr = in_two_processes("--resume")
    assert (code, out) == (0, f"{run}\n"), stderr
    assert "continuing after step 3" in stderr
    assert "stage 1" not in stderr


@pytest.mark.slow
def test_two_processes_leave_with_the_code_of_the_gate(tmp_path, preset, store, in_two_processes):
    start = ("--preset", preset, "--data", store, "--device", "cpu")
    code, out, stderr = in_two_processes(*start, "--fail-under", "box_iou=1")

    assert (code, out) == (4, ""), stderr
    assert stderr.count("wanted 1") == 1
    assert "Traceback" not in stderr
    assert (tmp_path / "run" / "weights" / "model.safetensors").is_file()


def test_a_dry_run_prints_the_settings_and_describes_each_stage(tmp_path, preset, store, refcli):
    code, out, stderr = refcli("--preset", preset, "--data", store, "--dry-run")
    stages = yaml.safe_load(out)["stages"]

    assert code == 0
    assert [(name, stage["train"]["steps"]) for name, stage in stages.items()] == [("frozen", 2), ("all", 3)]
    assert "stage 1 of 2, frozen:" in stderr and "stage 2 of 2, all:" in stderr
    assert not (tmp_path / "run").exists()


def test_a_gate_on_an_unknown_metric_is_refused_before_anything_is_trained(tmp_path, preset, store, refcli):
    code, out, stderr = refcli("--preset", preset, "--data", store, "--fail-under", "boxiou=0.5")

    assert (code, out) == (2, "")
    assert "did you mean 'box_iou'?" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "other", "key"), [("finetune", "pretrain", "objective: mrefm"), ("pretrain", "finetune", "stages: {}")]
)
def test_the_run_of_another_command_is_not_resumed_and_its_command_is_named(
    tmp_path, monkeypatch, capsys, command, other, key
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(f"# refcli 0.1.0\n{key}\n")
    monkeypatch.setattr(sys, "argv", ["refcli", command, "--resume", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as caught:
        run()
    message = " ".join(capsys.readouterr().err.split())

    assert caught.value.code == 2
    assert f"which `refcli {command}` cannot resume" in message
    assert f"refcli {other} --resume --out {tmp_path / 'run'}" in message


def test_init_head_is_the_setting_of_that_name(tmp_path, store, refcli):
    start = ("--preset", "synthetic_tiny", "--data", store, "--device", "cpu", "--dry-run")
    code, out, stderr = refcli(*start, "--init-head", "no-such-head")
    assert code == 2
    assert "there are no weights called 'no-such-head'" in stderr
    assert yaml.safe_load(out)["train"]["init_head"] == "no-such-head"
