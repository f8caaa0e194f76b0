"""A run starts from official weights of any kind: a tower, a pretrained model, the head of another task."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from refcli.config.schema import HeadChoice, ModelSettings
from refcli.errors import RefcliError, WeightsError
from refcli.grounder import Grounder
from refcli.weights.directory import load_weights, read_settings
from refcli.weights.official.convert import convert
from refcli.weights.transfer import read_starting_weights, start_from


def converted(fixtures, tmp_path, spm, name, *, keep=""):
    """A directory converted from the tensors of a fixture whose names start with `keep`."""
    state = load_file(fixtures / name / "weights.safetensors")
    torch.save({"model": {key: state[key] for key in state if key.startswith(keep)}}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", out=tmp_path / "w", heads=4, tokenizer=spm)
    return tmp_path / "w"


def fresh(directory, **head):
    """A new model with the tower settings and the tokenizer of weights, and another head."""
    text = {"tokenizer": str(directory / "tokenizer.spm")}
    settings = ModelSettings(
        tower=read_starting_weights(str(directory)).tower_settings, text=text, head=HeadChoice(settings=head)
    )
    torch.manual_seed(0)
    return Grounder.from_settings(settings), settings


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_beit3_tower_starts_a_run_with_a_fresh_head(fixtures, tmp_path, spm):
    directory = converted(fixtures, tmp_path, spm, "oneref_tiny_rec", keep="beit3.")
    grounder, settings = fresh(directory)
    head = {key: tensor.clone() for key, tensor in grounder.head.state_dict().items()}
    notes = start_from(str(directory), grounder, settings)
    tower = load_file(directory / "model.safetensors")
    assert same({f"tower.{key}": tensor for key, tensor in grounder.tower.state_dict().items()}, tower)
    assert same(grounder.head.state_dict(), head)
    assert any("have no head: all" in note for note in notes)


def test_a_mask_run_starts_from_a_pretrained_model_without_a_mask_head(fixtures, tmp_path, spm):
    directory = converted(fixtures, tmp_path, spm, "oneref_tiny_mrefm")
    grounder, settings = fresh(directory, rec=False, res=True)
    upsampler = grounder.head.upsampler[0].weight.clone()
    notes = start_from(str(directory), grounder, settings)
    trained = load_weights(str(directory)).grounder.head
    assert torch.equal(grounder.head.language_projection.weight, trained.language_projection.weight)
    assert torch.equal(grounder.head.upsampler[0].weight, upsampler)
    assert "newly initialised, because the weights do not have them: head.upsampler" in notes
    assert "dropped, because the settings switch them off: head.box_mlp, head.pool_projection" in notes


def test_a_tower_or_a_visual_tokenizer_is_not_loaded_as_a_model(fixtures, tmp_path, spm):
    directory = converted(fixtures, tmp_path, spm, "oneref_tiny_rec", keep="beit3.")
    with pytest.raises(WeightsError, match="a tower without a head, not a model that can answer"):
        load_weights(str(directory))
    torch.save(load_file(fixtures / "vqkd_tiny" / "weights.safetensors"), tmp_path / "v.pth")
    convert(tmp_path / "v.pth", out=tmp_path / "v", heads=2)
    with pytest.raises(WeightsError, match="a visual tokenizer, not a model"):
        read_settings(tmp_path / "v")


def test_a_missing_tokenizer_is_reported_before_the_model_is_read(fixtures, tmp_path, spm):
    directory = converted(fixtures, tmp_path, spm, "oneref_tiny_rec")
    (directory / "tokenizer.spm").unlink()
    (directory / "model.safetensors").write_bytes(b"never looked at")
    with pytest.raises(WeightsError, match="tokenizer file is missing") as caught:
        load_weights(str(directory))
    assert caught.value.hint == "put the SentencePiece file of the model there"


@pytest.mark.parametrize("keep", ["beit3.", ""])
def test_integers_in_place_of_weights_are_refused(fixtures, tmp_path, spm, keep):
    directory = converted(fixtures, tmp_path, spm, "oneref_tiny_rec", keep=keep)
    grounder, settings = fresh(directory)
    state = load_file(directory / "model.safetensors")
    name = "tower.encoder.blocks.0.ffn.vision.fc1.weight"
    save_file(state | {name: torch.ones_like(state[name], dtype=torch.int32)}, directory / "model.safetensors")
    with pytest.raises(RefcliError, match=f"1 tensor.*{name} holds int32 instead of floating-point numbers"):
        start_from(str(directory), grounder, settings)
