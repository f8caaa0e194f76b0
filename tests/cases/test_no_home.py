"""Without a home directory, commands that need none work, and the others name the variable to set."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from refcli.config.schema import TextSettings
from refcli.text.tokenizer import Tokenizer
from refcli.weights.locate import home
from refcli.weights.tokenizers import find_tokenizer, load_tokenizer

NAME = "oneref-base-rec-refcoco"
WAY_OUT = "set REFCLI_HOME or HOME"


@pytest.fixture
def nameless(monkeypatch):
    """A user id without a name and a home, as in containers."""

    def unknown(number: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "REFCLI_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_packaged_tokenizer_needs_no_home(nameless):
    assert isinstance(load_tokenizer(TextSettings()), Tokenizer)
    asked = TextSettings(tokenizer="beit3.spm")
    assert find_tokenizer(asked) == asked


def test_training_with_the_packaged_tokenizer_needs_no_home(refcli, nameless, tmp_path):
    assert refcli("prepare-data", "synthetic", "--out", tmp_path / "store", "--size", "10")[0] == 0
    code, _, err = refcli(
        *("finetune", "-p", "synthetic_tiny", "-d", tmp_path / "store", "-o", tmp_path / "run", "--device", "cpu"),
        *("--set", "train.steps=1", "--set", "data.validation=[]", "--set", "data.workers=0"),
        *("--set", "optim.warmup_steps=1"),
    )
    assert code == 0, err


@pytest.mark.parametrize("arguments", [("list",), ("info", "builtin"), ("info", NAME), ("list", "--json")])
def test_facts_that_need_no_home_are_shown(refcli, nameless, arguments):
    code, out, err = refcli("weights", *arguments)
    assert code == 0, err
    assert out
    assert (WAY_OUT in err) == (arguments[-1] != "builtin")


@pytest.mark.parametrize(
    "arguments",
    [
        ("weights", "pull", NAME),
        ("weights", "pull", "hf://linhuixiao/OneRef@main/x.pth"),
        ("weights", "verify", "beit3-tokenizer"),
        ("weights", "verify", NAME),
        ("predict", "a.jpg", "-e", "x", "-w", NAME),
    ],
)
def test_a_command_that_needs_a_home_names_the_variable_to_set(refcli, nameless, arguments):
    code, _, err = refcli(*arguments)
    assert code == 2
    assert WAY_OUT in err
    assert "unexpected" not in err


def test_a_home_of_an_unknown_user_is_named(refcli, nameless, monkeypatch):
    monkeypatch.setattr(pwd, "getpwnam", lambda name: (_ for _ in ()).throw(KeyError(name)))
    monkeypatch.setenv("REFCLI_HOME", "~unknown-user/refcli")
    code, _, err = refcli("weights", "pull", NAME)
    assert code == 2
    assert "REFCLI_HOME=~unknown-user/refcli" in err


def test_the_hub_keeps_its_files_in_refclis_home_where_there_is_no_other(nameless, tmp_path):
    code = (
        "import os; from refcli.weights.hub import fetch; from refcli.weights.locate import HubUri\n"
        "try: fetch(HubUri.parse('hf://a/b/c'))\n"
        "except Exception: pass\n"
        "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"REFCLI_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    no_user = "import pwd\ndef unknown(number): raise KeyError(number)\npwd.getpwuid = unknown\n"
    done = subprocess.run([sys.executable, "-c", no_user + code], env=environment, cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().strip() == str(tmp_path / "huggingface" / "hub"), done.stderr.decode()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("place", ["file/below", "link/below"])
@pytest.mark.parametrize("variable", ["HOME", "REFCLI_HOME"])
def test_a_home_that_cannot_be_created_is_an_error_of_pull_alone(refcli, tmp_path, monkeypatch, variable, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.delenv("REFCLI_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / place))
    assert refcli("weights", "list")[0] == 0
    code, _, err = refcli("weights", "pull", NAME)
    assert code == 1
    assert "set REFCLI_HOME to a directory that you may write" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_home_counts_as_empty(refcli, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir(mode=0o000)
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
    try:
        assert refcli("weights", "list")[0] == 0
        assert refcli("weights", "info", NAME)[0] == 0
    finally:
        (tmp_path / "home").chmod(0o700)


def test_relative_paths_in_other_programs_variables_are_ignored(monkeypatch, tmp_path):
    monkeypatch.delenv("REFCLI_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert home() == tmp_path / ".cache" / "refcli"
    monkeypatch.setenv("REFCLI_HOME", "here")
    assert home() == Path("here")
