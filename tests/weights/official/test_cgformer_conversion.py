"""The published CGFormer decoder is converted to our head's and back; the other tensors are dropped with a reason."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from refcli.config.schema import TowerSettings
from refcli.errors import UsageError, WeightsError
from refcli.heads.cgformer.head import CGFormerHead, CGFormerSettings
from refcli.weights.checks import read_info, verify
from refcli.weights.directory import load_weights
from refcli.weights.layout import HeadOnlySettings
from refcli.weights.official.conversions.cgformer import RENAMING, plan
from refcli.weights.official.conversions.plan import KeyTableError
from refcli.weights.official.convert import convert


def published(fixtures) -> dict[str, torch.Tensor]:
    """The names and shapes of the complete published model; the counters of BatchNorm are integers."""
    shapes = json.loads((fixtures / "cgformer_tiny" / "published_shapes.json").read_text())
    types = {name: torch.int64 if name.endswith("num_batches_tracked") else torch.float32 for name in shapes}
    return {name: torch.empty(shape, dtype=types[name], device="meta") for name, shape in shapes.items()}


def tiny(fixtures) -> dict[str, torch.Tensor]:
    weights = load_file(fixtures / "cgformer_tiny" / "weights.safetensors")
    return {f"decoder.{name}": tensor for name, tensor in weights.items()}


def make_plan(official, **options):
    return plan(official, args={}, **{"heads": None, "image_size": None} | options)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_published_layout_fills_our_decoder_exactly(fixtures, legacy):
    made = make_plan(published(fixtures))
    with torch.device("meta"):
        head = CGFormerHead(CGFormerSettings(legacy=legacy), TowerSettings(image_size=480))
    ours = {f"head.{n}": t.shape for n, t in head.state_dict().items() if not n.startswith("pyramid.")}
    assert {name: tensor.shape for name, tensor in made.state.items()} == ours


def test_the_settings_are_read_from_the_shapes(fixtures):
    made = make_plan(published(fixtures))
    assert made.settings.tower_dim == 768
    settings = CGFormerSettings(**made.settings.head.settings)
    assert settings == CGFormerSettings(position_grid=(30, 30), legacy=True)
    small = make_plan(tiny(fixtures))
    assert small.settings.tower_dim == 20
    settings = CGFormerSettings(**small.settings.head.settings)
    assert (settings.dim, settings.tokens, settings.position_grid) == (16, 2, (4, 4))
    assert settings.pyramid_channels[:2] == (8, 12)
    assert sum(settings.pyramid_channels[2:]) == 16 + 24, "only their sum shows"


def test_every_published_tensor_is_converted_or_dropped_with_a_reason(fixtures):
    official = published(fixtures)
    made = make_plan(official)
    assert sorted([*made.names, *made.dropped]) == sorted(official)
    in_decoder = [name for name in made.dropped if name.startswith("decoder.")]
    assert sum(official[name].numel() for name in in_decoder) == 2_102_272
    assert {RENAMING.why_left_out(name) for name in in_decoder} == {"saved by the published code, but never used"}


def test_renaming_to_the_official_names_and_back_changes_nothing(fixtures):
    official = tiny(fixtures)
    state = RENAMING.from_official(official)
    back = RENAMING.to_official(state)
    assert back.keys() == {name for name in official if RENAMING.why_left_out(name) is None}
    assert all(torch.equal(back[name], official[name]) for name in back)
    assert RENAMING.from_official(back).keys() == state.keys()


def test_exactly_the_tensors_that_do_not_fit_are_named(fixtures):
    official = tiny(fixtures)
    del official["decoder.cgattention1.tau"]
    official["decoder.proj.txt.bias"] = torch.zeros(16)
    official["decoder.proj.text.bias"] = torch.zeros(16)
    with pytest.raises(KeyTableError) as caught:
        make_plan(official)
    assert [(row.name, row.problem) for row in caught.value.rows] == [
        ("decoder.cgattention1.tau", "missing"),
        ("decoder.proj.text.bias", "unexpected"),
        ("decoder.proj.txt.bias", "wrong shape"),
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.positional_embedding", (15, 16)),
        ("tokens.weight", (1, 16)),
        ("fuses.1.fusion.0.weight", (16, 16, 3, 3)),
        ("fuses.0.fusion.0.weight", (16, 2, 3, 3)),
    ],
)
def test_shapes_that_make_no_decoder_are_refused(fixtures, name, shape):
    with pytest.raises(KeyTableError, match=name):
        make_plan(tiny(fixtures) | {f"decoder.{name}": torch.zeros(shape)})


def test_a_converted_file_holds_tensors_and_settings_for_a_new_head(fixtures, tmp_path):
    official = tiny(fixtures) | {
        "backbone.norm0.weight": torch.ones(8),
        "text_encoder.embeddings.LayerNorm.bias": torch.ones(8),
    }
    torch.save({"model": {f"module.{name}": tensor for name, tensor in official.items()}}, tmp_path / "c.pth")
    report = convert(tmp_path / "c.pth", out=tmp_path / "w")
    assert not report.needs_tokenizer
    assert report.dropped["backbone.norm0.weight"].startswith("its Swin transformer")
    settings = HeadOnlySettings.model_validate(yaml.safe_load((tmp_path / "w" / "config.yaml").read_text()))
    head = CGFormerHead(CGFormerSettings(**settings.head.settings), TowerSettings(dim=settings.tower_dim, heads=1))
    state = {n.removeprefix("head."): t for n, t in load_file(tmp_path / "w" / "model.safetensors").items()}
    fit = head.load_state_dict(state, strict=False)
    assert not fit.unexpected_keys
    assert {name.split(".")[0] for name in fit.missing_keys} == {"pyramid"}
    assert verify(tmp_path / "w") == []
    assert read_info(tmp_path / "w").kind == "part of the head cgformer"
    with pytest.raises(WeightsError, match="without a tower"):
        load_weights(str(tmp_path / "w"))


@pytest.mark.parametrize(("option", "value"), [("heads", 12), ("image_size", (384, 384))])
def test_there_is_no_tower_to_set(fixtures, option, value):
    with pytest.raises(UsageError, match="without a tower"):
        make_plan(tiny(fixtures), **{option: value})


def test_an_unknown_tensor_is_an_error_in_either_direction():
    with pytest.raises(WeightsError, match=r"resnet\.conv1"):
        RENAMING.from_official({"resnet.conv1": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"head\.pyramid\.stride4\.0\.weight"):
        RENAMING.to_official({"head.pyramid.stride4.0.weight": torch.zeros(1)})
