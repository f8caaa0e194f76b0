"""The visual tokenizer equals the official VQ-KD, and its weights convert both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import UsageError, WeightsError
from refcli.model.visual_tokenizer import VisualTokenizer, signed_pixels
from refcli.weights.official.conversions.plan import KeyTableError
from refcli.weights.official.conversions.vqkd import RENAMING, settings_of
from refcli.weights.tensors import Mismatch

HIDDEN, PIXELS, CODES = 2e-5, 1e-6, 1e-6
HEADS = 2
"""Of the tiny model; no shape shows it."""
CASES = ["native", "interp", "bytes"]
NEVER_USED_PARTS = ("decoder.", "decode_task_layer.", "quantize.cluster_size", "quantize.embedding.")


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def official(fixtures):
    return load_file(fixtures / "vqkd_tiny" / "weights.safetensors")


@pytest.fixture(scope="module")
def io(fixtures):
    return load_file(fixtures / "vqkd_tiny" / "io.safetensors")


@pytest.fixture(scope="module")
def tokenizer(official):
    tokenizer = VisualTokenizer(settings_of(official, heads=HEADS))
    tokenizer.load_state_dict(RENAMING.from_official(official), strict=True)
    return tokenizer.eval()


@pytest.mark.parametrize("case", CASES)
def test_code_ids_equal_the_official_ones(tokenizer, io, case):
    ids = tokenizer.code_ids(io[f"{case}.image"])
    assert ids.dtype == torch.int64
    assert torch.equal(ids, io[f"{case}.indices"])


@pytest.mark.parametrize("case", CASES)
def test_the_chosen_codes_equal_the_official_quantized_vectors(tokenizer, io, case):
    chosen = tokenizer.codebook[tokenizer.code_ids(io[f"{case}.image"])]
    close(chosen, io[f"{case}.quantized"].flatten(2).transpose(1, 2), CODES)


@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_official_ones(tokenizer, io, case):
    with torch.no_grad():
        close(tokenizer.patch_features(io[f"{case}.image"]), io[f"{case}.encoder_features"], HIDDEN)
        close(tokenizer.code_vectors(io[f"{case}.image"]), io[f"{case}.to_quantizer_features"], HIDDEN)


@pytest.mark.parametrize("case", ["native", "bytes"])
def test_pixels_are_scaled_as_the_official_code_scales_them(io, case):
    close(signed_pixels(io[f"{case}.image"]), io[f"{case}.preprocessed"], PIXELS)


def test_the_settings_are_read_from_the_shapes(official, fixtures):
    config = json.loads((fixtures / "vqkd_tiny" / "meta.json").read_text())["config"]
    assert settings_of(official, heads=config["num_heads"]) == VisualTokenizerSettings(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        dim=config["embed_dim"],
        layers=config["depth"],
        heads=config["num_heads"],
        ffn_dim=config["embed_dim"] * config["mlp_ratio"],
        layer_norm_eps=config["layernorm_eps"],
        num_codes=config["n_code"],
        code_dim=config["code_dim"],
    )


def test_a_width_without_heads_of_64_channels_asks_for_the_number_of_heads(official):
    with pytest.raises(UsageError, match="width of 32 channels does not divide into heads of 64 channels"):
        settings_of(official)
    with pytest.raises(UsageError, match="does not divide into 3 heads"):
        settings_of(official, heads=3)


def test_the_published_layout_is_the_default_settings_and_fills_the_model(fixtures):
    shapes = json.loads((fixtures / "vqkd_tiny" / "published_shapes.json").read_text())
    with torch.device("meta"):
        official = {name: torch.empty(shape) for name, shape in shapes.items()}
        wanted = VisualTokenizer(VisualTokenizerSettings()).state_dict()
    assert settings_of(official) == VisualTokenizerSettings()
    converted = RENAMING.from_official(official)
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in wanted.items()}
    assert len(converted) + len([name for name in official if RENAMING.why_left_out(name)]) == len(official) == 220


def test_conversion_there_and_back_is_bit_equal(official):
    ours = RENAMING.from_official(official)
    back = RENAMING.to_official(ours)
    assert back.keys() == {name for name in official if RENAMING.why_left_out(name) is None}
    assert all(torch.equal(back[name], official[name]) for name in back)
    again = RENAMING.from_official(back)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_tensors_that_only_training_needs_are_dropped(official):
    extra = {"teacher_model.a": torch.zeros(1), "scaling_layer.scale": torch.zeros(1), "loss.b": torch.zeros(1)}
    dropped = {name for name in {**official, **extra} if RENAMING.why_left_out(name)}
    expected = {name for name in official if name.startswith(NEVER_USED_PARTS)} - {"quantize.embedding.weight"}
    assert dropped == expected | extra.keys()
    assert settings_of({**official, **extra}, heads=HEADS) == settings_of(official, heads=HEADS)
    assert RENAMING.from_official({**official, **extra}).keys() == RENAMING.from_official(official).keys()


@pytest.mark.parametrize(
    ("changed", "row"),
    [
        (
            {"encoder.blocks.1.attn.q_bias": None},
            Mismatch("encoder.blocks.1.attn.q_bias", "missing", wanted=(32,)),
        ),
        ({"quantize.embedding.weight": None}, Mismatch("quantize.embedding.weight", "missing")),
        ({"encoder.rel_pos_bias": torch.zeros(1)}, Mismatch("encoder.rel_pos_bias", "unexpected", (1,))),
        (
            {"encoder.blocks.0.norm1.bias": torch.zeros(31)},
            Mismatch("encoder.blocks.0.norm1.bias", "wrong shape", (31,), (32,)),
        ),
        (
            {"encoder.blocks.0.mlp.fc2.bias": torch.zeros(32, dtype=torch.bool)},
            Mismatch("encoder.blocks.0.mlp.fc2.bias", "wrong type", "bool", "floating-point numbers"),
        ),
        (
            {"encoder.pos_embed": torch.zeros(1, 16, 32)},
            Mismatch("encoder.pos_embed", "wrong shape", (1, 16, 32)),
        ),
        (
            {"quantize.embedding.weight": torch.zeros(64)},
            Mismatch("quantize.embedding.weight", "wrong shape", (64,)),
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(official, changed, row):
    given = {name: tensor for name, tensor in {**official, **changed}.items() if tensor is not None}
    with pytest.raises(KeyTableError) as caught:
        settings_of(given, heads=HEADS)
    assert caught.value.rows == (row,)


def test_a_gap_in_the_block_numbers_is_an_error(official):
    moved = {name.replace("encoder.blocks.1.", "encoder.blocks.7."): t for name, t in official.items()}
    with pytest.raises(KeyTableError, match=r"missing +encoder\.blocks\.1\.norm1\.weight"):
        settings_of(moved, heads=HEADS)


def test_an_unknown_tensor_is_an_error_in_either_direction():
    with pytest.raises(WeightsError, match=r"resnet\.conv1"):
        RENAMING.from_official({"resnet.conv1": torch.zeros(1)})
    with pytest.raises(WeightsError, match="no place in the official model: decoder"):
        RENAMING.to_official({"decoder": torch.zeros(1)})
