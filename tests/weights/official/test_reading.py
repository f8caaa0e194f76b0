"""Official checkpoint files are read as data: no code runs, and damage is reported."""

import os
import random
import subprocess
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from handmade_pickles import Running, save
from safetensors.torch import load_file, save_file

from refcli.errors import ExitCode, UsageError, WeightsError
from refcli.files import file_sha256
from refcli.weights.official.reading import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7)}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def as_the_original_code(state, **args):
    return {
        "model": OrderedDict(state),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(50)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": Namespace(**args),
        "val_accu": 0.75,
    }


@FORMATS
def test_the_tensors_and_args_of_a_training_checkpoint_are_read(tmp_path, zipped):
    content = as_the_original_code(STATE, lr=1e-4, device="cuda", betas=(0.9, 0.999), enable_mim_vts=False, seed=None)
    read = read_checkpoint(save(tmp_path / "c.pth", content, zipped=zipped))
    assert read.state.keys() == STATE.keys()
    assert all(torch.equal(read.state[name], STATE[name]) for name in STATE)
    assert read.args == {"lr": 1e-4, "device": "cuda", "betas": [0.9, 0.999], "enable_mim_vts": False, "seed": None}
    assert read.epoch == 3
    assert read.dropped == ("optimizer", "lr_scheduler", "val_accu")
    assert read.unknown_types == ()
    assert read.source_sha256 == file_sha256(tmp_path / "c.pth")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files")
def test_tensors_stay_in_the_file_until_they_are_used(tmp_path):
    read = read_checkpoint(save(tmp_path / "c.pth", {"model": {"a": torch.ones(1000)}}))
    assert str(tmp_path / "c.pth") in Path("/proc/self/maps").read_text()
    read.state["a"].zero_()
    assert read_checkpoint(tmp_path / "c.pth").state["a"].sum() == 1000, "the file must not be written to"


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE},
        {"module": STATE, "epoch": 1},
        {"state_dict": STATE},
        STATE,
        OrderedDict(STATE),
        {"model": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {f"module.{name}": torch.nn.Parameter(tensor.float()) for name, tensor in STATE.items()},
    ],
)
def test_every_official_container_is_read(tmp_path, content):
    state = read_checkpoint(save(tmp_path / "c.pth", content)).state
    assert state.keys() == STATE.keys()
    assert not any(tensor.requires_grad for tensor in state.values())


def test_args_that_json_cannot_hold_become_text(tmp_path):
    args = {"device": torch.device("cuda", 1), "nan": float("nan"), "mean": torch.ones(3), 5: b"x"}
    read = read_checkpoint(save(tmp_path / "c.pth", {"model": STATE, "args": args}))
    assert read.args == {"device": "cuda:1", "nan": "nan", "mean": "tensor of shape (3,)", "5": "b'x'"}


@FORMATS
@pytest.mark.parametrize("place", ["model", "args", "top"])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, "touch {marker}"),
        (subprocess.check_output, ["touch", "{marker}"]),
        (eval, "open('{marker}', 'w')"),
        (exec, "open('{marker}', 'w')"),
        (os.mkdir, "{marker}"),
    ],
)
def test_a_pickle_that_runs_programs_is_refused_and_runs_nothing(tmp_path, function, arguments, place, zipped):
    marker = str(tmp_path / "marker")
    filled = (
        [a.format(marker=marker) for a in arguments] if isinstance(arguments, list) else arguments.format(marker=marker)
    )
    running = Running(function, filled)
    content = {"top": running, "model": {"model": {"a": running}}, "args": {"model": STATE, "args": running}}[place]
    path = save(tmp_path / "c.pth", content, zipped=zipped)
    with pytest.raises(WeightsError, match="which no checkpoint needs") as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == ExitCode.INTEGRITY
    assert not Path(marker).exists()


def test_methods_of_a_pickled_dictionary_are_not_used(tmp_path):
    state = Running(OrderedDict, list(STATE.items()), state={"items": "not a method"})
    assert read_checkpoint(save(tmp_path / "c.pth", {"model": state})).state.keys() == STATE.keys()


@FORMATS
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_an_error(tmp_path, zipped, kept):
    path = save(tmp_path / "c.pth", {"model": {"a": torch.rand(5000)}, "args": Namespace(lr=1)}, zipped=zipped)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert caught.value.where is not None
    assert "c.pth" in caught.value.where


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    save(tmp_path / "small.pth", {"model": {"a": torch.zeros(10)}})
    with zipfile.ZipFile(tmp_path / "small.pth") as small, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in small.namelist():
            content = b"\0" * 50_000_000 if name.endswith("data/0") else small.read(name)
            bomb.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(WeightsError, match="declares 50,"):
        read_checkpoint(tmp_path / "bomb.pth")


@FORMATS
def test_a_tensor_larger_than_its_file_is_refused(tmp_path, zipped):
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    path = save(tmp_path / "c.pth", {"model": {"a": huge}}, zipped=zipped)
    with pytest.raises(WeightsError, match="declare 4,000,000,000,000 bytes"):
        read_checkpoint(path)


@FORMATS
def test_a_storage_larger_than_its_file_is_refused(tmp_path, zipped):
    path = save(tmp_path / "c.pth", {"model": {"a": torch.zeros(70_000)}}, zipped=zipped)
    true, false = (b"J" + number.to_bytes(4, "little") for number in (70_000, 2**31 - 1))
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(true, false) if name.endswith("data.pkl") else content)
    else:
        assert path.read_bytes().count(true) == 2, "once for the storage and once for the tensor"
        path.write_bytes(path.read_bytes().replace(true, false))
    with pytest.raises(WeightsError, match="an object of size 2,147,483,647"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
@FORMATS
def test_damage_never_crashes_the_reader(tmp_path, zipped):
    path = save(tmp_path / "c.pth", {"model": STATE, "args": Namespace(out=Path("x"))}, zipped=zipped)
    whole, dice, outcomes = path.read_bytes(), random.Random(5), {"read": 0, "refused": 0}
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 3])):
            damaged[dice.randrange(len(whole))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
            outcomes["read"] += 1
        except WeightsError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_args_that_expand_without_bound_are_refused(tmp_path):
    unfolding = ["lol"]
    for _ in range(3):
        unfolding = [unfolding] * 30
    with pytest.raises(WeightsError, match="too large to be settings"):
        read_checkpoint(save(tmp_path / "c.pth", {"model": STATE, "args": Namespace(x=unfolding)}))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "wrong", [torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta"), None, 5]
)
def test_a_tensor_that_is_not_dense_is_named(tmp_path, wrong):
    with pytest.raises(
        WeightsError, match=r"other than dense tensors: wrong|cannot be read|tensors that are not dense"
    ):
        read_checkpoint(save(tmp_path / "c.pth", {"model": {"right": torch.zeros(1), "wrong": wrong}}))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {}}, torch.zeros(3)])
def test_a_file_without_a_state_dict_is_an_error(tmp_path, content):
    with pytest.raises(WeightsError, match=r"not a state dict|nothing at all"):
        read_checkpoint(save(tmp_path / "c.pth", content))


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_a_file_of_another_kind_is_recognised(tmp_path, start):
    (tmp_path / "c.pth").write_bytes(start)
    with pytest.raises(WeightsError, match="not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("name", ["\x1b[2Ja", "a\n", "a" * 201])
def test_a_name_with_terminal_codes_is_refused(tmp_path, name):
    for content in ({"model": {name: torch.zeros(1)}}, {"model": STATE, name: 3}):
        with pytest.raises(WeightsError, match="implausible names") as caught:
            read_checkpoint(save(tmp_path / "c.pth", content))
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_error_about_an_archive_of_checkpoints_lists_its_members(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "base.zip", "w", packing) as archive:
        archive.writestr("unc/best_checkpoint.pth", b"x" * 1000)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "base.zip")
    assert caught.value.hint == "unpack it and convert unc/best_checkpoint.pth"


def test_a_path_that_is_not_a_file_is_a_usage_error(tmp_path):
    for path, message in (
        (tmp_path / "c.pth", "no such checkpoint file"),
        (tmp_path, "this is a directory, not a checkpoint file"),
        (tmp_path / ("x" * 300), "the file cannot be read"),
        (Path(os.devnull), "this is a device, pipe or socket"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read_checkpoint(path)
        assert caught.value.where == str(path)


def test_a_state_dict_as_safetensors_is_read_from_the_mapped_file(tmp_path):
    save_file(STATE, tmp_path / "c.safetensors", metadata={"format": "pt", "model": "x"})
    read = read_checkpoint(tmp_path / "c.safetensors")
    assert read.state.keys() == STATE.keys()
    assert all(torch.equal(read.state[name], STATE[name]) for name in STATE)
    assert (read.args, read.epoch, read.dropped, read.unknown_types) == ({}, None, (), ())
    read.state["a.weight"].zero_()
    assert torch.equal(load_file(tmp_path / "c.safetensors")["a.weight"], STATE["a.weight"])


def test_a_damaged_or_odd_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    for state, message in (
        ({"\x1b[2Ja": torch.zeros(1)}, "implausible names"),
        ({"a": torch.zeros(1, dtype=torch.float8_e4m3fn)}, "other than dense tensors: a"),
        ({}, "nothing at all"),
    ):
        save_file(state, path)
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(path)
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(path)
