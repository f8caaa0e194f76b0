"""`read_info` describes a weights directory, and `verify` finds its problems."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import refcli
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import WeightsError
from refcli.files import file_sha256
from refcli.grounder import Grounder
from refcli.weights.checks import read_info, unchecked, verify
from refcli.weights.directory import save_weights
from refcli.weights.official.convert import convert

BUILTIN = Path(refcli.__file__).parent / "weights" / "builtin"
MODEL = "model.safetensors"


@pytest.fixture(autouse=True)
def nothing_pulled(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))


@pytest.fixture
def converted(fixtures, tmp_path):
    """A converted MRefM checkpoint with a tokenizer; its args state that VTS was on and STS was off."""
    args = Namespace(enable_mrefm=True, enable_mim_vts=True, enable_mlm_sts=False, lr=1e-4)
    official = load_file(fixtures / "oneref_tiny_mrefm" / "weights.safetensors")
    torch.save({"model": official, "epoch": 4, "args": args}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", out=tmp_path / "w", heads=4, origin={"licence": "MIT"})
    (tmp_path / "w" / "beit3.spm").write_bytes(b"not yet")
    return tmp_path / "w"


def change(path, change_state):
    state = load_file(path)
    change_state(state)
    save_file(state, path)


def without_tokenizer(problems):
    """The tiny model's tokenizer is a stand-in, which `verify` reports as well."""
    return [problem for problem in problems if "beit3.spm" not in problem]


def test_the_description_of_a_converted_checkpoint_is_complete(fixtures, converted):
    official = load_file(fixtures / "oneref_tiny_mrefm" / "weights.safetensors")
    found = read_info(converted)
    assert (found.kind, found.tasks, found.image_size, found.dtypes) == ("oneref", (), (64, 64), ("F32",))
    assert found.pretraining == {"enable_mrefm": True, "enable_mim_vts": True, "enable_mlm_sts": False}
    assert found.source["args"]["lr"] == 1e-4
    assert found.source["epoch"] == 4
    assert found.licence == "MIT"
    assert found.tokenizer == "beit3.spm"
    assert found.tokenizer_is_there
    assert found.sha256 == file_sha256(converted / MODEL)
    assert found.parameters["tower.text_embedding"] == 200 * 64 + 1024 * 64
    assert found.pretraining_parameters["mim_head"] == 32 * 64 + 32
    dropped = sum(official[name].numel() for name in ("text_proj.weight", "text_proj.bias", "logit_scale"))
    counted = found.num_parameters + sum(found.pretraining_parameters.values()) + dropped
    assert counted == sum(tensor.numel() for tensor in official.values())


def test_info_and_verify_accept_the_packaged_model(tmp_path):
    found = read_info(BUILTIN)
    assert found.kind == "oneref"
    assert found.tasks == ("box", "mask", "existence")
    assert found.tokenizer == "builtin"
    assert found.tokenizer_is_there
    assert found.sha256 == file_sha256(BUILTIN / MODEL)
    assert verify(BUILTIN) == []
    assert unchecked(BUILTIN) == []
    assert found.training["trained_on"] == ["synthetic:count"]
    assert found.training["existence_threshold_from"] == "synthetic:val"
    assert {"steps", "batch_size", "seed", "init_weights", "averaged"} <= found.training.keys()
    assert found.scores["synthetic:test"]["count"] == 11_999
    assert 0.9 < found.scores["synthetic:test"]["acc50"] < 1


def test_changed_numbers_in_the_packaged_model_are_detected(tmp_path):
    shutil.copytree(BUILTIN, tmp_path / "w")
    content = bytearray((BUILTIN / MODEL).read_bytes())
    content[-2] ^= 1  # the lowest bit of the last number: it stays finite
    (tmp_path / "w" / MODEL).write_bytes(content)
    assert verify(tmp_path / "w") == [f"{MODEL} is not the file that was written: its sha256 differs from meta.json's"]


def test_missing_checksums_are_reported(tmp_path):
    shutil.copytree(BUILTIN, tmp_path / "w")
    (tmp_path / "w" / "meta.json").write_text('{"steps": 3}')
    assert verify(tmp_path / "w") == []
    (note,) = unchecked(tmp_path / "w")
    assert "records no checksums" in note


def test_a_meta_json_of_the_wrong_form_does_not_crash(tmp_path):
    shutil.copytree(BUILTIN, tmp_path / "w")
    for scores in (3, {"splits": []}, {"splits": {"a": 1, "b": {"overall": {"acc50": "high", "count": 4}}}}):
        (tmp_path / "w" / "meta.json").write_text(json.dumps({"files": [], "scores": scores, "averaged": {"by": [1]}}))
        assert {name: figures for name, figures in read_info(tmp_path / "w").scores.items() if figures} in (
            {},
            {"b": {"count": 4}},
        )


@pytest.mark.parametrize(
    ("name", "settings", "tasks"),
    [
        ("oneref", {}, ("box",)),
        ("rela", {"dim": 16, "heads": 2, "pyramid_channels": [8, 8, 8, 8]}, ("mask", "existence")),
        ("shared_ris", {"dim": 16, "heads": 2}, ("mask",)),
        ("cgformer", {"dim": 16, "pyramid_channels": [8, 8, 8, 8], "existence": True}, ("mask", "existence")),
    ],
)
def test_the_outputs_of_each_head_are_described(tmp_path, name, settings, tasks):
    tower = TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=700)
    model = ModelSettings(tower=tower, head=HeadChoice(name=name, settings=settings))
    save_weights(tmp_path / "w", Grounder.from_settings(model), model, meta={})
    assert read_info(tmp_path / "w").tasks == tasks


def test_towers_and_visual_tokenizers_have_different_kinds(fixtures, tmp_path):
    official = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    tower = {name: tensor for name, tensor in official.items() if name.startswith("beit3.")}
    torch.save({"model": tower}, tmp_path / "tower.pth")
    torch.save({"model": load_file(fixtures / "vqkd_tiny" / "weights.safetensors")}, tmp_path / "vqkd.pth")
    convert(tmp_path / "tower.pth", out=tmp_path / "tower", heads=4)
    convert(tmp_path / "vqkd.pth", out=tmp_path / "vqkd", heads=2)
    assert (read_info(tmp_path / "tower").kind, read_info(tmp_path / "tower").tokenizer_is_there) == ("tower", False)
    assert (read_info(tmp_path / "vqkd").kind, read_info(tmp_path / "vqkd").tokenizer) == ("visual tokenizer", None)
    assert read_info(tmp_path / "vqkd").image_size == (64, 64)
    assert verify(tmp_path / "vqkd") == []
    assert without_tokenizer(verify(tmp_path / "tower")) == []
    assert any("tokenizer file is missing" in problem for problem in verify(tmp_path / "tower"))


def test_an_intact_directory_has_no_problem(converted):
    assert without_tokenizer(verify(converted)) == []
    assert any("not a SentencePiece model" in problem for problem in verify(converted))


@pytest.mark.parametrize(
    ("change_state", "problem"),
    [
        (lambda state: state.pop("head.box_mlp.0.bias"), "head.box_mlp.0.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not part of the model"),
        (
            lambda state: state.update({"head.box_mlp.0.bias": torch.zeros(3)}),
            "head.box_mlp.0.bias has shape (3,) instead of (64,)",
        ),
        (
            lambda state: state.update({"head.box_mlp.0.bias": torch.ones(64, dtype=torch.bool)}),
            "head.box_mlp.0.bias holds BOOL instead of floating-point numbers",
        ),
        (lambda state: state["head.box_mlp.0.bias"].fill_(torch.inf), "head.box_mlp.0.bias holds NaN or infinity"),
    ],
)
def test_every_mismatch_is_named_in_addition_to_the_changed_checksum(converted, change_state, problem):
    change(converted / MODEL, change_state)
    problems = without_tokenizer(verify(converted))
    assert problem in problems
    assert any("sha256 differs" in each for each in problems)
    assert len(problems) == 2


def test_heads_that_are_kept_apart_are_checked_too(converted):
    change(converted / "pretraining_heads.safetensors", lambda state: state["mim_head.bias"].fill_(torch.nan))
    assert "mim_head.bias holds NaN or infinity" in verify(converted)
    (converted / "pretraining_heads.safetensors").write_bytes(b"half")
    assert any("damaged" in problem and "pretraining_heads" in problem for problem in verify(converted))
    (converted / "pretraining_heads.safetensors").unlink()
    assert "pretraining_heads.safetensors is missing" in verify(converted)


def test_a_changed_config_that_still_fits_is_detected(converted):
    config = (converted / "config.yaml").read_text()
    assert "  heads: 4\n" in config
    (converted / "config.yaml").write_text(config.replace("  heads: 4\n", "  heads: 8\n"))
    (problem,) = without_tokenizer(verify(converted))
    assert problem.startswith("config.yaml is not the file that was written")


def test_a_tokenizer_with_more_ids_than_the_tower_embeds_is_found(converted):
    text = Path(refcli.__file__).parent / "text" / "builtin.spm"
    (converted / "other.spm").write_bytes(text.read_bytes())
    config = (converted / "config.yaml").read_text()
    (converted / "config.yaml").write_text(config.replace("beit3.spm", "other.spm"))
    assert any(r"more than the tower embeds (200)" in problem for problem in verify(converted))


def test_damaged_files_are_reported_as_problems(converted):
    whole = (converted / MODEL).read_bytes()
    (converted / MODEL).write_bytes(whole[: len(whole) // 2])
    assert any("damaged" in problem for problem in verify(converted))
    assert any("sha256 differs" in problem for problem in verify(converted))
    (converted / MODEL).write_bytes(whole)
    for content, problem in (("tower: {depth: 3}\n", "depth"), ("[1, 2]", "not a mapping"), ("{", "no readable")):
        (converted / "config.yaml").write_text(content)
        assert any(problem in each for each in verify(converted)), content


def test_a_directory_without_weights_is_an_error(tmp_path):
    for look in (read_info, verify):
        with pytest.raises(WeightsError, match="not a weights directory"):
            look(tmp_path)
