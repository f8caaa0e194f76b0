"""`refcli weights` describes files in readable lines, and no text in them controls the terminal."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refcli.cli.options import WEIGHTS_NAMES
from refcli.cli.weights import convert_command, info_command, list_command, verify_command
from refcli.errors import WeightsError
from refcli.weights.catalog import Catalog
from refcli.weights.locate import BUILTIN_PATH
from refcli.weights.official.convert import convert


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")


def save(fixtures, path: Path, **args: object) -> Path:
    torch.save(
        {"model": load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"), "args": Namespace(**args)}, path
    )
    return path


def change_meta(directory: Path, **changes: object) -> None:
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | changes))


def test_info_describes_the_training_of_a_model(capsys):
    info_command("builtin")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    for line in ("trained on synthetic:count", "steps 5600", "batch size 64", "seed 19", "averaged yes",
                 "init weights synthetic_small_fine/weights", "existence threshold from synthetic:val"):  # fmt: skip
        assert line in lines
    (scores,) = [line for line in lines if line.startswith("scores")]
    assert scores.startswith("scores synthetic:test: count 11999, targeted 10551, acc50 0.9637, ")


def test_info_as_json_describes_it_too(capsys):
    info_command("builtin", as_json=True)
    files = json.loads(capsys.readouterr().out)["files"]

    meta = json.loads((BUILTIN_PATH / "meta.json").read_text())
    assert files["training"] == {key: meta[key] for key in files["training"]}
    assert len(files["training"]) == 7
    assert files["scores"] == {"synthetic:test": meta["scores"]["splits"]["synthetic:test"]["overall"]}


def test_a_threshold_chosen_at_the_end_of_a_run_is_shown_with_its_metrics(tmp_path, capsys):
    shutil.copytree(BUILTIN_PATH, tmp_path / "w")
    change_meta(
        tmp_path / "w", init_weights=None, existence_threshold_from={"splits": ["a:val", "b:val"], "t_acc": 0.97}
    )
    info_command(str(tmp_path / "w"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert "existence threshold from splits a:val, b:val, t_acc 0.9700" in lines
    assert "init weights none" in lines


def test_text_from_a_file_is_escaped_and_cannot_fake_a_line(tmp_path, capsys, fixtures):
    path = save(fixtures, tmp_path / "c.pth", **{"a\x1b[2Jb": "unc\nlicence  MIT"})
    convert(path, out=tmp_path / "w", heads=4, origin={"licence": "none\nnote  all is well\x1b[1A"})
    change_meta(tmp_path / "w", notes=["\x9b2J\u202enote\rlicence  MIT"], seed="1\nkind  builtin")
    info_command(str(tmp_path / "w"))

    out = capsys.readouterr().out
    assert all(letter.isprintable() for letter in out.replace("\n", ""))
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [value for key, value in lines if key == "licence"] == [r"none\nnote  all is well\x1b[1A"]
    assert [value for key, value in lines if key == "kind"] == ["oneref"]
    assert [value for key, value in lines if key == "note"] == [r"\x9b2J\u202enote\rlicence  MIT"]
    assert [value for key, value in lines if key == "seed"] == [r"1\nkind  builtin"]
    assert r"a\x1b[2Jb" in out


def test_a_name_inside_a_model_cannot_fake_a_line_of_verify(tmp_path, capsys, fixtures):
    convert(save(fixtures, tmp_path / "c.pth"), out=tmp_path / "w", heads=4)
    state = load_file(tmp_path / "w" / "model.safetensors")
    save_file(state | {"odd\nall is well\x1b[2J": torch.zeros(1)}, tmp_path / "w" / "model.safetensors")
    with pytest.raises(WeightsError, match="not intact"):
        verify_command(str(tmp_path / "w"))

    err = capsys.readouterr().err
    assert r"odd\nall is well\x1b[2J is not part of the model" in err
    assert "all is well" not in [line.strip() for line in err.splitlines()]
    assert "\x1b" not in err


def test_the_list_is_printable_for_any_catalogue(capsys, monkeypatch):
    catalog = Catalog.load()
    odd = catalog.weights[1].model_copy(update={"title": "boxes\x1b[2J\nbuiltin  rec"})
    monkeypatch.setattr(Catalog, "load", lambda: catalog.model_copy(update={"weights": (catalog.weights[0], odd)}))
    list_command()

    _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("builtin")
    assert second.endswith(r"boxes\x1b[2J\nbuiltin  rec")


def test_verify_reports_missing_checksums(tmp_path, capsys):
    verify_command("builtin")
    assert capsys.readouterr().err == ""
    shutil.copytree(BUILTIN_PATH, tmp_path / "w")
    (tmp_path / "w" / "meta.json").unlink()
    verify_command(str(tmp_path / "w"))

    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'w'}\n"
    assert captured.err.startswith("note: meta.json records no checksums")


def test_the_note_about_the_tokenizer_advises_a_pull_only_if_it_was_not_pulled(tmp_path, capsys, fixtures):
    path = save(fixtures, tmp_path / "c.pth")
    convert_command(path, out=tmp_path / "before", heads=4)
    assert "or `refcli weights pull beit3-tokenizer`" in capsys.readouterr().err
    pulled = tmp_path / "home" / "weights" / "beit3-tokenizer" / "beit3.spm"
    pulled.parent.mkdir(parents=True)
    pulled.write_bytes(
        (BUILTIN_PATH.parents[1] / "text" / "builtin.spm").read_bytes()
    )  # more ids than the tiny tower's
    convert_command(path, out=tmp_path / "after", heads=4)

    err = capsys.readouterr().err
    assert f"the model needs its tokenizer: put it into {tmp_path / 'after'} as beit3.spm" in err
    assert "weights pull" not in err


@pytest.mark.parametrize(
    "command", [["predict"], ["evaluate"], ["finetune"], ["pretrain"], ["weights", "info"], ["weights", "verify"]]
)
def test_every_command_describes_accepted_weights_alike(command, capsys):
    from refcli.cli.app import app

    with pytest.raises(SystemExit):
        app([*command, "--help"])
    assert WEIGHTS_NAMES in " ".join(capsys.readouterr().out.split())
