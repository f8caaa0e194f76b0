"""`refcli weights`: stdout, stderr, and a killed pull that is resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from refcli.cli.weights import Dtype, convert_command, info_command, list_command, pull_command, verify_command
from refcli.errors import ExitCode, UsageError, WeightsError
from refcli.weights.catalog import Catalog
from refcli.weights.locate import BUILTIN_PATH

HUB = Path(__file__).parents[1] / "support" / "loopback_hub.py"
REPO, SPM = "linhuixiao/OneRef", "beit3_checkpoints/beit3.spm"
NAME = "oneref-large-rec-refcoco"
CLIENT_BLOCK = 10 * 2**20
"""Bytes that huggingface_hub writes at a time."""
SECONDS = 120
NOTHING_HEAVY = """
import sys
from refcli.cli.weights import list_command
list_command()
sys.stderr.write(" ".join(name for name in ("torch", "huggingface_hub", "numpy") if name in sys.modules))
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))


@pytest.fixture
def hub():
    spec = importlib.util.spec_from_file_location("hub_of_cli", HUB)
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_of_cli"] = module
    spec.loader.exec_module(module)
    with module.running() as hub:
        yield hub
    del sys.modules["hub_of_cli"]


def pull_process(hub, tmp_path: Path, name: str, **environment: str) -> subprocess.Popen:
    """The real command in its own process, with the Hub's variables set to the local Hub."""
    hubs = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "refcli", "weights", "pull", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **hubs, **environment},
    )


def wait_for(happened) -> None:
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_pull_is_resumed(hub, tmp_path):
    content = sys.modules["hub_of_cli"].sentencepiece_file(64_000, num_unused=2 * CLIENT_BLOCK)
    hub.commit(REPO, {SPM: content})
    hub.stall_after = CLIENT_BLOCK + 1000
    killed = pull_process(hub, tmp_path, "beit3-tokenizer")
    wait_for(lambda: any(path.stat().st_size for path in (tmp_path / "hf").rglob("*.refcli-partial")))
    killed.kill()
    killed.communicate(timeout=SECONDS)
    (partial,) = (tmp_path / "hf").rglob("*.refcli-partial")
    num_kept = partial.stat().st_size
    assert 0 < num_kept <= CLIENT_BLOCK
    hub.stall_after = None

    process = pull_process(hub, tmp_path, "beit3-tokenizer")
    out, err = process.communicate(timeout=SECONDS)

    assert process.returncode == ExitCode.OK, err
    assert out == f"{tmp_path / 'home' / 'weights' / 'beit3-tokenizer'}\n"
    assert f"continuing {SPM} after {num_kept / 1e6:.2f} MB" in err
    assert [request.range for request in hub.downloads()] == [None, f"bytes={num_kept}-"]
    assert (Path(out.strip()) / "beit3.spm").read_bytes() == content


def test_offline_mode_fails_with_a_hint_and_no_traceback(hub, tmp_path):
    process = pull_process(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    out, err = process.communicate(timeout=SECONDS)

    assert (process.returncode, out) == (ExitCode.FAILED, "")
    assert "error: HF_HUB_OFFLINE is set" in err
    assert "hint: unset HF_HUB_OFFLINE" in err
    assert "Traceback" not in err
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["nowhere", "http://[nowhere"])
def test_a_malformed_endpoint_fails_with_a_hint(hub, tmp_path, endpoint):
    process = pull_process(hub, tmp_path, NAME, HF_ENDPOINT=endpoint)
    _, err = process.communicate(timeout=SECONDS)

    assert process.returncode == ExitCode.FAILED
    assert "HF_ENDPOINT" in err
    assert "unexpected" not in err


def test_the_list_imports_neither_torch_nor_the_hubs_library():
    done = subprocess.run([sys.executable, "-c", NOTHING_HEAVY], capture_output=True, text=True, check=True)

    assert done.stderr == ""
    assert NAME in done.stdout


def test_the_list_has_a_line_for_every_name(capsys):
    list_command()
    header, *lines = capsys.readouterr().out.splitlines()

    assert header.split() == ["NAME", "TASKS", "IMAGE", "FILE", "CHECKSUM", "HERE", "WHAT"]
    assert [line.split()[0] for line in lines] == Catalog.load().names()
    by_name = {line.split()[0]: " ".join(line.split()) for line in lines}
    assert by_name[NAME] == f"{NAME} rec 384 ~8.0 GB unverified OneRef large, boxes, fine-tuned on RefCOCO"
    assert by_name["builtin"].startswith("builtin rec,res 154 packaged yes The small model inside refcli")


def test_the_list_as_json_has_null_for_unverified_values(capsys):
    list_command(as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}

    row = rows[NAME]
    assert [row[key] for key in ("revision", "sha256", "num_bytes", "pin", "directory")] == [None] * 5
    assert (row["checksum"], row["repos"][0], row["tower"]) == ("unverified", REPO, "large")
    assert row["scores"] == {
        "table_1": {
            "metric": "acc50",
            "source": "OneRef (NeurIPS 2024), Table 1: REC, fine-tuned on one data set",
            "note": None,
            "percent": {"refcoco_unc": {"val": 92.87, "testA": 94.01, "testB": 90.19}},
        }
    }
    masks = rows["oneref-base-res-refcoco"]["scores"]
    assert [(masks[table]["metric"], masks[table]["note"]) for table in ("table_3", "table_4")] == [
        ("mask_miou", "measured at 384 x 384 with padding"),
        ("mask_oiou", "measured at 384 x 384 with padding"),
    ]
    assert rows["builtin"]["directory"] == str(BUILTIN_PATH)


def test_info_about_weights_not_pulled_shows_the_catalogue_entry(capsys):
    info_command("oneref-base-res-mixed")
    out = capsys.readouterr().out

    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert lines["sha256"].strip() == "unverified"
    assert lines["member"].strip() == "mixup/best_checkpoint.pth"
    assert lines["paper mask_miou"].strip() == (
        "refcocog_umd: val 74.06, test 74.92 (OneRef (NeurIPS 2024), Table 3: RES mIoU; "
        "measured at 384 x 384 with padding)"
    )
    assert "refcoco_unc: val 79.83, testA 81.86, testB 76.99 (" in out
    assert "not here; refcli weights pull oneref-base-res-mixed" in out
    assert "Apache-2.0" in lines["licence"]


def test_info_about_the_packaged_model_counts_its_parameters(capsys):
    from safetensors import safe_open

    with safe_open(BUILTIN_PATH / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    info_command("builtin", as_json=True)
    files = json.loads(capsys.readouterr().out)["files"]

    assert sum(files["parameters"].values()) <= sum(product(shape) for shape in shapes.values())
    assert files["parameters"]["tower.encoder"] == sum(
        product(shape) for name, shape in shapes.items() if name.startswith("tower.encoder.")
    )
    assert files["tasks"] == ["box", "mask", "existence"]


def product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def test_verify_prints_the_directory_of_intact_weights(capsys):
    verify_command("builtin")

    assert capsys.readouterr().out == f"{BUILTIN_PATH}\n"


def test_verify_lists_the_problems_and_fails(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes((BUILTIN_PATH / "model.safetensors").read_bytes()[:-4])
    (tmp_path / "config.yaml").write_bytes((BUILTIN_PATH / "config.yaml").read_bytes())

    with pytest.raises(WeightsError, match="not intact") as broken:
        verify_command(str(tmp_path))

    captured = capsys.readouterr()
    assert broken.value.where == str(tmp_path)
    assert captured.out == ""
    assert "damaged" in captured.err


def test_convert_prints_the_directory_and_reports_on_the_file(tmp_path, capsys, fixtures):
    state = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    file, out = tmp_path / "best_checkpoint.pth", tmp_path / "out"
    torch.save({"model": state, "epoch": 3, "args": Namespace(use_regress_box=True), "optimizer": {}}, file)

    convert_command(file, out=out, dtype=Dtype.BF16, heads=4)
    captured = capsys.readouterr()

    assert captured.out == f"{out}\n"
    assert "as bf16" in captured.err
    assert "optimizer" in captured.err
    assert "refcli weights pull beit3-tokenizer" in captured.err
    info_command(str(out))
    shown = " ".join(capsys.readouterr().out.split())
    assert "stored as BF16" in shown
    assert "beit3.spm, which is missing" in shown
    assert "training args use_regress_box=True" in shown
    assert "licence not known" in shown


def test_convert_as_json_accounts_for_every_tensor(tmp_path, capsys, fixtures):
    state = load_file(fixtures / "oneref_tiny_mrefm" / "weights.safetensors")
    torch.save({"model": state, "optimizer": {}}, tmp_path / "c.pth")

    convert_command(tmp_path / "c.pth", out=tmp_path / "out", heads=4, as_json=True)

    report = json.loads(capsys.readouterr().out)
    assert (report["out"], report["kind"], report["dtype"], report["tasks"]) == (
        str(tmp_path / "out"),
        "oneref",
        "fp32",
        [],
    )
    assert sorted([*report["names"], *report["kept_apart"], *report["dropped"]]) == sorted([*state, "optimizer"])
    assert report["needs_tokenizer"] is True


def test_info_describes_a_directory_with_the_name_of_a_catalogue_entry(tmp_path, capsys, monkeypatch):
    (tmp_path / NAME).symlink_to(BUILTIN_PATH)
    monkeypatch.chdir(tmp_path)

    info_command(NAME, as_json=True)

    report = json.loads(capsys.readouterr().out)
    assert report["catalogue"] is None
    assert report["files"]["directory"] == NAME


def test_a_misspelt_name_is_not_pulled(capsys):
    with pytest.raises(UsageError, match="no weights called") as unknown:
        pull_command("oneref-large-rec-refcco")

    assert f"did you mean {NAME!r}" in unknown.value.hint
    with pytest.raises(UsageError, match="is part of refcli"):
        pull_command("builtin")


def test_a_name_too_long_for_any_disk_is_a_usage_error(tmp_path):
    for command in (info_command, verify_command):
        with pytest.raises(UsageError, match="no weights called"):
            command("x" * 300)
    with pytest.raises(UsageError, match="the file cannot be read"):
        convert_command(tmp_path / ("x" * 300), out=tmp_path / "out")
