"""Checkpoints that wrappers and other trainers saved are converted as if they had not been wrapped, with a note."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from refcli.errors import ExitCode, WeightsError
from refcli.weights.official.convert import convert, detect_kind
from refcli.weights.official.reading import read_checkpoint

HEADS_OF_TINY = 4


@pytest.fixture(scope="module")
def official(fixtures):
    return load_file(fixtures / "oneref_tiny_res" / "weights.safetensors")


@pytest.fixture(autouse=True)
def nothing_pulled(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def converted(tmp_path, content, *, suffix=".pth"):
    """The tensors and the notes of the converted weights."""
    path = tmp_path / f"c{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    report = convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY)
    return load_file(tmp_path / "w" / "model.safetensors"), report.notes


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def plain(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return converted(folder, {"model": official})[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "model.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "model.module._orig_mod.",
        "net.model.",
        "_fsdp_wrapped_module.",
        "my_trainer.student.",
    ],
)
def test_a_prefix_of_all_names_is_removed_and_noted(tmp_path, official, plain, prefix, suffix):
    tensors, notes = converted(tmp_path, prefixed(official, prefix), suffix=suffix)
    assert same(tensors, plain)
    removed = " ".join(note for note in notes if note.startswith("removed from the names"))
    assert all(part in removed for part in prefix.rstrip(".").split("."))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_a_wrapper_of_a_part_is_removed(tmp_path, official, plain, wrapper):
    state = {name.replace("beit3.encoder.", f"beit3.{wrapper}.encoder."): tensor for name, tensor in official.items()}
    assert state.keys() != official.keys()
    tensors, notes = converted(tmp_path, {"model": state})
    assert same(tensors, plain)
    assert any(wrapper in note for note in notes)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"ema": state},
        lambda state: {"net": state},
        lambda state: {"model": {"model": state}},
        lambda state: {"model": {"state_dict": state, "epoch": 3}},
        lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 1.0}, "epoch": 1},
        lambda state: {"model_ema": {"module": state}},
        lambda state: {"n_averaged": torch.tensor(5), **prefixed(state, "module.")},
        lambda state: {"state_dict": {"n_averaged": torch.tensor(5), **prefixed(state, "module._orig_mod.")}},
        lambda state: {"my_own_key": state, "step": 5, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}},
        lambda state: {"model": state, "ema": prefixed(state, "nothing."), "net": {}},
    ],
    ids=[
        "ema", "net", "model in model", "state_dict in model", "Lightning", "module in model_ema", "AveragedModel",
        "AveragedModel of a compiled model", "own key", "model before ema",
    ],
)  # fmt: skip
def test_the_tensors_are_found_in_the_containers_of_common_trainers(tmp_path, official, plain, wrap):
    tensors, _ = converted(tmp_path, wrap(official))
    assert same(tensors, plain)


def test_state_dicts_of_pytorch_wrappers_are_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for name, wrapped in (("averaged", averaged), ("compiled", torch.compile(model))):
        torch.save({"state_dict": wrapped.state_dict()}, tmp_path / name)
        assert read_checkpoint(tmp_path / name).state.keys() == model.state_dict().keys()


def test_a_part_of_a_larger_model_is_named(official):
    with pytest.raises(WeightsError) as caught:
        detect_kind({**prefixed(official, "grounder."), "loss.weight": torch.zeros(1)})
    assert "'grounder'" in str(caught.value.hint)


def test_names_that_would_become_equal_stay(tmp_path):
    save_file({"_orig_mod.a": torch.zeros(1), "x._orig_mod.b": torch.zeros(1), "x.b": torch.ones(1)}, tmp_path / "c")
    assert read_checkpoint(tmp_path / "c").state.keys() == {"_orig_mod.a", "x._orig_mod.b", "x.b"}


def test_a_checkpoint_of_an_unknown_kind_is_refused_with_its_names(tmp_path, refcli):
    torch.save({"model": {"a.b.weight": torch.zeros(1), "a.c.weight": torch.zeros(1)}}, tmp_path / "c.pth")
    code, _, err = refcli("weights", "convert", tmp_path / "c.pth", "--out", tmp_path / "w")
    assert code == ExitCode.INTEGRITY
    assert "a.b.weight" in err


# The folder that a conversion writes.

KILLED = """
import sys, time
from pathlib import Path
from refcli.weights.layout import new_directory
with new_directory(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_bytes(b"half")
    print(folder.name, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask and no SIGKILL")
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002])
def test_converted_files_follow_the_umask(tmp_path, official, umask):
    before = os.umask(umask)
    try:
        converted(tmp_path, {"model": official})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "w").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o777 & ~umask


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask and no SIGKILL")
def test_temporary_files_of_a_killed_conversion_are_removed_by_the_next(tmp_path, official):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = tmp_path / process.stdout.readline().strip()
    process.kill()
    process.wait(timeout=60)
    assert left.is_dir()
    converted(tmp_path, {"model": official})
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
