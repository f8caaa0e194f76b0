"""Weights directories load as they were saved, and mismatches are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import RefcliError, UsageError, WeightsError
from refcli.files import file_sha256
from refcli.grounder import Grounder
from refcli.weights import layout
from refcli.weights.checks import verify
from refcli.weights.directory import load_weights, save_weights

SETTINGS = ModelSettings(
    tower=TowerSettings(image_size=32, patch_size=8, dim=32, layers=2, heads=2, ffn_dim=64, vocabulary_size=650),
    head=HeadChoice(settings={"res": True, "mask_dim": 16, "similarity_scale": 5.0}),
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    grounder = Grounder.from_settings(SETTINGS).eval()
    save_weights(tmp_path / "w", grounder, SETTINGS, meta={"made_by": "a test"})
    return grounder, tmp_path / "w"


def change(directory, change_state):
    state = load_file(directory / "model.safetensors")
    change_state(state)
    save_file(state, directory / "model.safetensors")


def test_loading_returns_what_was_saved(saved):
    grounder, directory = saved
    loaded = load_weights(str(directory))
    assert loaded.settings == SETTINGS
    assert loaded.meta["made_by"] == "a test"
    assert loaded.name == "w"
    assert not loaded.grounder.training
    ours, theirs = loaded.grounder.state_dict(), grounder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_bf16_files_are_half_as_large_and_load_as_fp32(saved, tmp_path):
    grounder, directory = saved
    save_weights(tmp_path / "half", grounder, SETTINGS, meta={}, dtype="bf16")
    sizes = [(where / "model.safetensors").stat().st_size for where in (directory, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert {p.dtype for p in load_weights(str(tmp_path / "half")).grounder.parameters()} == {torch.float32}


def test_meta_json_states_the_kind_and_the_sha256_of_every_file(saved):
    directory = saved[1]
    meta = json.loads((directory / "meta.json").read_text())
    assert (meta["schema"], meta["kind"]) == ("refcli.weights/1", "oneref")
    others = [path for path in directory.iterdir() if path.name != "meta.json"]
    assert meta["files"] == {path.name: file_sha256(path) for path in others}
    assert verify(directory) == []


@pytest.mark.parametrize("file", ["meta.json", "config.yaml", "model.safetensors"])
def test_a_crash_between_files_never_leaves_a_seemingly_complete_directory(saved, monkeypatch, file):
    directory, write = saved[1], layout.write_atomically

    def write_until(path, content):
        if path.name == file:
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(layout, "write_atomically", write_until)
    settings = SETTINGS.model_copy(update={"text": SETTINGS.text.model_copy(update={"max_tokens": 20})})
    torch.manual_seed(1)
    with pytest.raises(RefcliError, match="cannot be written: no space left"):
        save_weights(directory, Grounder.from_settings(settings), settings, meta={})
    with pytest.raises(RefcliError, match="cannot be written"):
        save_weights(directory.parent / "new", Grounder.from_settings(settings), settings, meta={})
    assert not (directory.parent / "new" / "model.safetensors").exists()
    assert (verify(directory) == []) == (file == "meta.json"), "the directory is the old one, or incomplete"
    if file == "model.safetensors":
        assert verify(directory) == [
            "model.safetensors is not the file that was written: its sha256 differs from meta.json's"
        ]


def test_a_directory_has_its_own_tokenizer(saved, tmp_path):
    grounder, _ = saved
    from importlib.resources import files

    spm = tmp_path / "mine.spm"
    spm.write_bytes(files("refcli.text").joinpath("builtin.spm").read_bytes())
    settings = SETTINGS.model_copy(update={"text": SETTINGS.text.model_copy(update={"tokenizer": str(spm)})})
    save_weights(tmp_path / "own", grounder, settings, meta={})
    spm.unlink()
    assert load_weights(str(tmp_path / "own")).tokenizer.encode("star") == load_weights(str(saved[1])).tokenizer.encode(
        "star"
    )


@pytest.mark.parametrize(
    ("change_state", "message"),
    [
        (lambda state: state.pop("head.box_mlp.0.bias"), "head.box_mlp.0.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not part of the model"),
        (lambda state: state.update({"head.box_mlp.0.bias": torch.zeros(3)}), r"shape \(3,\) instead of \(32,\)"),
        (
            lambda state: state.update({"head.box_mlp.0.bias": torch.ones(32, dtype=torch.int64)}),
            "head.box_mlp.0.bias holds int64 instead of floating-point numbers",
        ),
        (lambda state: state["head.box_mlp.0.bias"].fill_(torch.nan), "holds NaN"),
    ],
)
def test_every_mismatch_is_named(saved, change_state, message):
    change(saved[1], change_state)
    with pytest.raises(WeightsError, match=message):
        load_weights(str(saved[1]))


def test_a_truncated_file_is_an_error(saved):
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(str(saved[1]))


def test_a_damaged_meta_json_is_named(saved):
    for content in ("{", "[]"):
        (saved[1] / "meta.json").write_text(content)
        with pytest.raises(WeightsError, match=r"meta\.json") as damaged:
            load_weights(str(saved[1]))
        assert damaged.value.where == str(saved[1] / "meta.json")


def test_a_tokenizer_with_more_ids_than_the_tower_embeds_is_refused(tmp_path):
    settings = SETTINGS.model_copy(update={"tower": SETTINGS.tower.model_copy(update={"vocabulary_size": 100})})
    save_weights(tmp_path / "w", Grounder.from_settings(settings), settings, meta={})
    with pytest.raises(WeightsError, match=r"more than the tower embeds \(100\)"):
        load_weights(str(tmp_path / "w"))


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(UsageError, match="no weights called"):
        load_weights(str(tmp_path))
