"""`train.precision: auto` is decided when a run starts and then stays; reported speeds are measured."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
import yaml

from refcli.cli.app import run
from refcli.config.load import load_finetune, load_pretrain
from refcli.config.presets import list_presets
from refcli.engine.measuring.step_time import StepTime, step_seconds
from refcli.engine.reporting import metrics
from refcli.recipes import precision

CPU = torch.device("cpu")
SHORT = [
    *("--set", "train.steps=2", "--set", "data.validation=[]", "--set", "data.workers=0"),
    *("--set", "train.batch_size=4", "--set", "optim.warmup_steps=1", "--device", "cpu"),
]
AUTO = ["--set", "train.precision=auto"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["refcli", "prepare-data", "synthetic", "--out", str(out), "--size", "10"])
        with pytest.raises(SystemExit) as caught:
            run()
    assert not caught.value.code
    return out


@pytest.fixture
def device_gains(monkeypatch):
    """Set whether the measured CPU gains from bf16."""
    return lambda gains: monkeypatch.setattr(precision, "cpu_gains_from_bf16", lambda: gains)


def precision_of(path) -> str:
    return yaml.safe_load((path / "run.yaml").read_text())["train"]["precision"]


@pytest.mark.parametrize(("group", "load"), [("finetune", load_finetune), ("pretrain", load_pretrain)])
def test_no_preset_requires_bf16(group, load):
    assert {load(name).train.precision for name in list_presets(group)} == {"auto", "fp32"}


@pytest.mark.parametrize(("gains", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_selects_the_faster_precision_on_this_cpu(refcli, store, tmp_path, device_gains, gains, chosen):
    device_gains(gains)
    code, _, err = refcli("finetune", "-p", "synthetic_tiny", "-d", store, "-o", tmp_path / "run", *SHORT, *AUTO)
    assert code == 0
    assert f"train.precision=auto is {chosen}: this CPU" in err
    assert precision_of(tmp_path / "run") == chosen


def test_a_resumed_run_keeps_its_precision_on_another_machine(refcli, store, tmp_path, device_gains):
    asked = ["finetune", "-p", "synthetic_tiny", "-d", store, "-o", tmp_path / "run", *SHORT, *AUTO]
    device_gains(True)
    assert refcli(*asked)[0] == 0
    device_gains(False)
    code, _, err = refcli(*asked, "--resume", "--set", "train.steps=3")
    assert code == 0, err
    assert precision_of(tmp_path / "run") == "bf16"
    code, _, err = refcli(*asked, "--resume", "--set", "train.precision=fp32")
    assert code == 2
    assert "cannot change train.precision" in err


def test_each_stage_may_set_auto(refcli, store, tmp_path, device_gains):
    device_gains(False)
    stages = ["--set", "stages={heads: {train: {precision: auto, steps: 1}}, all: {train: {steps: 1}}}"]
    code, _, err = refcli("finetune", "-p", "synthetic_tiny", "-d", store, "-o", tmp_path / "run", *SHORT[2:], *stages)
    assert code == 0, err
    assert [precision_of(path) for path in sorted((tmp_path / "run" / "stages").iterdir())] == ["fp32", "fp32"]
    assert (
        yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["stages"]["heads"]["train"]["precision"] == "fp32"
    )


def test_pretraining_selects_its_precision_in_the_same_way(refcli, store, tmp_path, device_gains):
    device_gains(False)
    asked = ["pretrain", "-p", "visual_tokenizer_small", "-d", store, "-o", tmp_path / "run", *SHORT]
    code, _, err = refcli(*asked)
    assert code == 0, err
    assert precision_of(tmp_path / "run") == "fp32"


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_gpus_without_native_bf16_train_in_fp32(monkeypatch, has_bf16, chosen):
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: has_bf16)
    assert precision.precision_on(torch.device("cuda"))[0] == chosen


def test_a_note_warns_if_the_gpu_emulates_the_requested_bf16(monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: False)
    asked = load_finetune("synthetic_tiny", ["train.precision=bf16"])
    (note,) = precision.slow_precision(asked, torch.device("cuda"))
    assert "emulates it" in note and "train.precision=fp32" in note


def test_a_dry_run_reports_the_precision_and_tries_a_step(refcli, store, tmp_path, device_gains):
    device_gains(False)
    code, _, err = refcli(
        "finetune", "-p", "synthetic_tiny", "-d", store, "-o", tmp_path / "run", *SHORT, *AUTO, "--dry-run"
    )
    assert code == 0, err
    assert "train.precision=auto is fp32" in err
    assert re.search(r"time: about .* per 1,000 steps, .* in all.*measured on [1-4] of 4 samples", err)
    share = re.search(r"GFLOP a step at (\d+)% of", err)
    assert share and int(share[1]) <= 100
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(0, 2 * (0.3 + 0.1) + 0.05), (1, 0.65), (4, 0.65)],
)
def test_loading_in_parallel_takes_no_time_if_there_are_enough_cores(monkeypatch, workers, seconds):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    measured = StepTime(passes=0.3, update=0.05, num_samples=4)
    found = step_seconds(measured, loading=0.1, accumulate=2, workers=workers, device=CPU)
    assert found == pytest.approx(seconds)


def test_the_time_of_a_step_is_that_of_loading_if_loading_is_the_bottleneck(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    measured = StepTime(passes=0.1, update=0.0, num_samples=4)
    for workers, seconds in ((1, 2.0), (4, 0.5)):
        assert step_seconds(measured, loading=2.0, accumulate=1, workers=workers, device=CPU) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "head",
    [
        "{}",
        "{name: shared_ris, settings: {dim: 32, heads: 4}}",
    ],
)
def test_utilisation_is_never_above_one_however_slow_the_device_was_when_measured(
    refcli, store, tmp_path, monkeypatch, head
):
    monkeypatch.setattr(metrics, "gemm_peak", lambda device, precision: 1.0)
    preset = tmp_path / "own.yaml"
    values = load_finetune("synthetic_tiny").model_dump(mode="json")
    values["model"]["head"] = yaml.safe_load(head)
    preset.write_text(yaml.safe_dump(values))
    code, _, err = refcli(
        "finetune", "-p", preset, "-d", store, "-o", tmp_path / "run", *SHORT, "--set", "train.log_every=1"
    )
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(0 < line["flops_utilisation"] <= 1 for line in lines)
