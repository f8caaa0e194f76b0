"""Types that a checkpoint names are never imported: they become text, or are refused if they could do harm."""

import functools
import os
import shutil
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade_pickles import Running, save
from torch.serialization import get_unsafe_globals_in_checkpoint

from refcli.errors import WeightsError
from refcli.files import write_atomically
from refcli.weights.official import reading
from refcli.weights.official.reading import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}


def test_unknown_types_become_text_without_being_imported(tmp_path):
    authors = types.ModuleType("authors_code")
    exec("class Schedule:\n    def __init__(self):\n        self.step = 3", authors.__dict__)
    sys.modules["authors_code"] = authors
    try:
        args = Namespace(out=Path("runs/x"), schedule=authors.Schedule(), best=np.float64(0.5))
        save(tmp_path / "c.pth", {"model": STATE, "args": args})
    finally:
        del sys.modules["authors_code"]
    read = read_checkpoint(tmp_path / "c.pth")
    assert "authors_code" not in sys.modules
    assert read.args["out"] in ("pathlib.PosixPath('runs', 'x')", "pathlib.PosixPath('runs/x')")
    assert read.args["schedule"] == "authors_code.Schedule()"
    assert read.args["best"].startswith("numpy.")
    assert {"pathlib.PosixPath", "authors_code.Schedule"} < set(read.unknown_types)


def test_a_call_of_any_other_function_is_text_among_the_args_and_an_error_among_the_tensors(tmp_path):
    running = Running(write_atomically, str(tmp_path / "marker"), b"")
    read = read_checkpoint(save(tmp_path / "c.pth", {"model": STATE, "args": {"call": running}}))
    assert read.args["call"].startswith("refcli.files.write_atomically(")
    with pytest.raises(WeightsError, match="other than dense tensors: a"):
        read_checkpoint(save(tmp_path / "d.pth", {"model": {"a": running}}))
    read = read_checkpoint(save(tmp_path / "e.pth", {"model": STATE, "args": {"call": Running(torch.hub.load, "a/b")}}))
    assert read.args == {"call": "torch.hub.load('a/b')"}
    assert not (tmp_path / "marker").exists()


def test_harmless_args_are_read_without_a_warning(tmp_path):
    args = Namespace(
        betas=defaultdict(list, {"adam": [0.9, 0.999]}),
        last=deque([1, 2], maxlen=2),
        data=types.SimpleNamespace(name="unc"),
        kind=float,
        norm=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        act=torch.nn.GELU(),
        milestones=Counter({3: 1}),
    )
    read = read_checkpoint(save(tmp_path / "c.pth", {"model": STATE, "args": args}))
    assert read.args == {
        "betas": {"adam": [0.9, 0.999]},
        "last": [1, 2],
        "data": {"name": "unc"},
        "kind": "builtins.float",
        "norm": "functools.partial('torch.nn.modules.normalization.LayerNorm')",
        "act": "torch.nn.modules.activation.GELU()",
        "milestones": {"3": 1},
    }


def test_exactly_the_types_that_torch_calls_unsafe_get_a_stand_in(tmp_path):
    args = Namespace(out=Path("x"), kind=float, act=torch.nn.GELU(), last=deque([1]), size=torch.Size([1]))
    path = save(tmp_path / "c.pth", {"model": {**STATE, "b": torch.nn.Parameter(torch.zeros(1))}, "args": args})
    plain = {*reading.NAMESPACES, *reading.BUILT_AS}
    assert {*read_checkpoint(path).unknown_types} == {*get_unsafe_globals_in_checkpoint(path)} - plain


@pytest.mark.parametrize(
    "function", [os.system, os.getcwd, subprocess.run, eval, exec, getattr, __import__, open, shutil.rmtree, type]
)
def test_names_that_could_act_are_refused_with_a_warning(tmp_path, function):
    path = save(tmp_path / "c.pth", {"model": STATE, "args": Namespace(x=function)})
    with pytest.raises(WeightsError, match="which no checkpoint needs") as caught:
        read_checkpoint(path)
    assert "do not load this file with other programs" in caught.value.hint


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_pickle_of_the_same_name_is_surveyed_too(tmp_path):
    path = save(tmp_path / "c.pth", {"model": {"a": Running(os.mkdir, str(tmp_path / "marker"))}})
    with zipfile.ZipFile(path) as archive:
        hostile = archive.read("c/data.pkl")
        others = {name: archive.read(name) for name in archive.namelist() if name != "c/data.pkl"}
    with zipfile.ZipFile(save(tmp_path / "good.pth", {"model": {}})) as archive:
        harmless = archive.read("good/data.pkl")
    for names in (("c/data.pkl", "c/data.pkl"), ("c/DATA.PKL", "c/data.pkl")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (*zip(names, (hostile, harmless), strict=True), *others.items()):
                archive.writestr(name, content)
        with pytest.raises(WeightsError, match="which no checkpoint needs"):
            read_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_no_hint_advises_unsafe_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "stand_in", lambda module, name, where: None)
    path = save(tmp_path / "c.pth", {"model": STATE, "args": Namespace(lr=1)})
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        read_checkpoint(path)
    assert caught.value.hint == "Unsupported global: GLOBAL argparse.Namespace was not an allowed global by default."
