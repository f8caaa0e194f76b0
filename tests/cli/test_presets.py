"""`refcli presets`: every preset can be shown with all settings and checked; a mistake is named by file and key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import yaml

from refcli.cli.presets import app, loaders
from refcli.config import presets
from refcli.config.presets import list_presets, preset_groups

ALL = [f"{group}/{name}" for group in preset_groups() for name in list_presets(group)]


@dataclass
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """Run `refcli presets` with some arguments."""

    def run(*arguments) -> Done:
        code = app(list(arguments), standalone_mode=False) or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def specs(tmp_path, monkeypatch):
    """A folder of presets in place of the real one: one good, one with a key that does not exist."""
    for group in ("finetune", "pretrain"):
        (tmp_path / "specs" / "presets" / group).mkdir(parents=True)
    monkeypatch.setattr(presets, "data_specs_root", lambda: tmp_path / "specs")
    folder = tmp_path / "specs" / "presets"
    (folder / "pretrain" / "good.yaml").write_text("train: {steps: 3}\n")
    (folder / "pretrain" / "wrong.yaml").write_text("extends: good\nmrefm: {alternat: true}\n")
    (folder / "finetune" / "head.yaml").write_text("model: {head: {settings: {rez: true}}}\n")
    return folder


def test_every_group_has_a_reader():
    assert set(preset_groups()) <= set(loaders())


def test_all_presets_that_ship_are_good(run):
    done = run("check")

    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"ok {name}" for name in ALL]


def test_a_preset_of_pretraining_is_shown_with_every_setting(run):
    done = run("show", "--resolved", "pretrain/paper")
    shown = yaml.safe_load(done.out)

    assert done.code == 0
    assert shown["mrefm"]["image_masking"]["method"] == "block"
    assert shown["mrefm"]["text_masking"]["ratio"] == 0.4
    assert "extends" not in shown


def test_a_mistake_is_reported_with_file_and_key_and_the_others_are_still_checked(specs, run):
    done = run("check")

    assert done.code == 2
    assert done.out.splitlines() == ["ok pretrain/good"]
    assert f"{specs / 'pretrain' / 'wrong.yaml'}: mrefm.alternat" in done.err
    assert "did you mean 'alternate'?" in done.err
    assert f"{specs / 'finetune' / 'head.yaml'}: model.head.settings: rez" in done.err


def test_only_the_named_presets_are_checked(specs, run):
    done = run("check", "pretrain/good")

    assert (done.code, done.out, done.err) == (0, "ok pretrain/good\n", "")


def test_a_name_that_does_not_exist_is_a_mistake(specs, run):
    done = run("check", "goood")

    assert done.code == 2
    assert "did you mean 'good'?" in done.err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("extends: good\n", 0, ""),
        ("mrefm: {alternate: false}\n", 0, ""),
        ("model: {head: {settings: {rec: false}}}\n", 0, ""),
        ("extends: good\ntrain: {stepz: 1}\n", 2, "train.stepz"),
        ("extends: gone\n", 2, "gone"),
        ("model: {head: {name: onerev}}\n", 2, "model.head.name"),
        ("mrefm: [1]\n", 2, "mrefm"),
        ("train: {steps: 0}\n", 2, "train.steps"),
        ("stages: {all: {model: {head: {settings: {rez: true}}}}}\n", 2, "stages.all.model.head.settings: rez"),
        ("- 1\n", 2, "mapping"),
    ],
)
def test_a_custom_file_is_checked_too(specs, run, tmp_path, text, code, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = run("check", str(file))

    assert done.code == code, done.err
    assert (done.out == f"ok {file}\n") is (code == 0)
    assert message in done.err
