"""A visual tokenizer loads as it was saved, and `read_info` and `verify` accept it."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import ConfigError, WeightsError
from refcli.files import file_sha256
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.weights.checks import read_info, verify
from refcli.weights.official.convert import convert
from refcli.weights.tokenizers import load_visual_tokenizer, save_visual_tokenizer

SETTINGS = VisualTokenizerSettings(
    image_size=32, patch_size=8, dim=16, layers=2, heads=2, ffn_dim=32, num_codes=24, code_dim=4
)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VisualTokenizer(SETTINGS)


@pytest.fixture
def saved(tokenizer, tmp_path):
    save_visual_tokenizer(tmp_path / "w", tokenizer, meta={"trained_on": ["synthetic:train"], "steps": 3})
    return tmp_path / "w"


def test_loading_returns_what_was_saved(tokenizer, saved):
    loaded = load_visual_tokenizer(str(saved))
    assert loaded.settings == SETTINGS
    assert not loaded.training
    ours, theirs = loaded.state_dict(), tokenizer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_directory_has_the_form_of_a_converted_one(fixtures, saved, tmp_path):
    torch.save({"model": load_file(fixtures / "vqkd_tiny" / "weights.safetensors")}, tmp_path / "vqkd.pth")
    convert(tmp_path / "vqkd.pth", out=tmp_path / "converted", heads=2, kind="vqkd")
    folders = (saved, tmp_path / "converted")
    ours, theirs = ({file.name for file in folder.iterdir()} for folder in folders)
    assert ours == theirs
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders)
    assert ours.keys() == theirs.keys()
    ours, theirs = (json.loads((folder / "meta.json").read_text()) for folder in folders)
    assert theirs.keys() - ours.keys() == {"source", "keys", "origin"}  # ours was not converted from another file
    assert all(ours[key] == theirs[key] for key in ("schema", "refcli", "kind", "tasks", "dtype", "notes"))
    assert ours["files"].keys() == theirs["files"].keys()
    ours, theirs = (set(load_file(folder / "model.safetensors")) for folder in folders)
    assert ours == theirs


def test_a_converted_tokenizer_gives_the_official_ids(fixtures, tmp_path):
    torch.save({"model": load_file(fixtures / "vqkd_tiny" / "weights.safetensors")}, tmp_path / "vqkd.pth")
    convert(tmp_path / "vqkd.pth", out=tmp_path / "w", heads=2)
    oracle = load_file(fixtures / "vqkd_tiny" / "io.safetensors")
    ids = load_visual_tokenizer(str(tmp_path / "w")).code_ids(oracle["native.image"])
    assert torch.equal(ids.flatten(), oracle["native.indices"].flatten())


def test_a_bfloat16_directory_loads_as_float32(fixtures, tmp_path):
    torch.save({"model": load_file(fixtures / "vqkd_tiny" / "weights.safetensors")}, tmp_path / "vqkd.pth")
    convert(tmp_path / "vqkd.pth", out=tmp_path / "w", heads=2, dtype="bf16")
    assert {tensor.dtype for tensor in load_visual_tokenizer(str(tmp_path / "w")).state_dict().values()} == {
        torch.float32
    }


def test_info_and_verify_accept_a_saved_directory(saved):
    found = read_info(saved)
    assert (found.kind, found.tasks, found.image_size, found.dtypes) == ("visual tokenizer", (), (32, 32), ("F32",))
    assert found.sha256 == file_sha256(saved / "model.safetensors")
    assert found.notes
    assert verify(saved) == []
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes() + b" ")
    assert any("sha256 differs" in problem for problem in verify(saved))


def test_saving_again_replaces_the_old_files(tokenizer, saved):
    with torch.no_grad():
        tokenizer.codebook.neg_()
    save_visual_tokenizer(saved, tokenizer, meta={})
    assert torch.equal(load_visual_tokenizer(str(saved)).codebook, tokenizer.codebook)
    assert verify(saved) == []


def test_weights_of_another_kind_are_refused_by_name():
    with pytest.raises(WeightsError, match="are a model, not a visual tokenizer"):
        load_visual_tokenizer("builtin")


def test_the_error_about_weights_not_pulled_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as problem:
        load_visual_tokenizer("vqkd")
    assert problem.value.hint == "refcli weights pull vqkd"


def test_files_that_do_not_belong_together_are_refused(saved):
    config = yaml.safe_load((saved / "config.yaml").read_text())
    (saved / "config.yaml").write_text(yaml.safe_dump(config | {"num_codes": 25}))
    with pytest.raises(WeightsError, match=r"codebook has shape \(24, 4\) instead of \(25, 4\)"):
        load_visual_tokenizer(str(saved))
    (saved / "config.yaml").write_text(yaml.safe_dump(config | {"depth": 2}))
    with pytest.raises(ConfigError, match="depth"):
        load_visual_tokenizer(str(saved))
