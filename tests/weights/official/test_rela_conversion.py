"""ReLA's published decoders are converted to ours and back, tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file

from refcli.config.schema import TowerSettings
from refcli.errors import UsageError, WeightsError
from refcli.heads.rela.head import RelaHead, RelaSettings
from refcli.weights.official.conversions.plan import KeyTableError
from refcli.weights.official.conversions.rela import OLD_REGIONS, OUR_REGIONS, REGIONS, RENAMING, THEIR_REGIONS, plan
from refcli.weights.official.convert import convert
from refcli.weights.tensors import Mismatch

OTHERS = {"backbone.patch_embed.proj.weight": (128, 3, 4, 4), "text_encoder.encoder.layer.0.output.dense.bias": (768,)}
NO_OPTIONS = {"args": {}, "heads": None, "image_size": None}


def published(fixtures, *, device="meta") -> dict[str, torch.Tensor]:
    """The names and shapes of the published model's two decoders, and two of its other tensors."""
    shapes = json.loads((fixtures / "rela_tiny" / "keys.json").read_text()) | OTHERS
    return {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}


def small(**settings) -> dict[str, torch.Tensor]:
    """A small head's decoders under the official names."""
    torch.manual_seed(0)
    config = RelaSettings(
        dim=16, heads=8, regions=3, decoder_layers=2, decoder_ffn_dim=12, pixel_layers=2, pixel_ffn_dim=20, points=4,
        pyramid_channels=(4, 5, 6, 7), **settings,
    )  # fmt: skip
    state = RelaHead(config, TowerSettings(dim=24, heads=2)).state_dict()
    return RENAMING.to_official(
        {f"head.{name}": tensor for name, tensor in state.items() if not name.startswith("pyramid.")}
    )


def test_the_published_layout_fills_our_decoders_exactly(fixtures):
    official = published(fixtures)
    with torch.device("meta"):
        head = RelaHead(RelaSettings(), TowerSettings())
    wanted = {f"head.{name}": tensor.shape for name, tensor in head.state_dict().items()}
    converted = RENAMING.from_official(official)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: shape for name, shape in wanted.items() if not name.startswith("head.pyramid.")
    }
    assert set(RENAMING.to_official(converted)) == official.keys() - OTHERS.keys()


def test_a_plan_has_the_published_sizes_and_lists_the_dropped_tensors(fixtures):
    made = plan(published(fixtures), **NO_OPTIONS)
    assert made.settings.tower_dim == 768
    assert made.settings.head.name == "rela"
    assert RelaSettings(**made.settings.head.settings) == RelaSettings(legacy=True)
    assert sum(tensor.numel() for tensor in made.state.values()) == 5_544_384 + 14_985_733
    assert made.dropped.keys() == OTHERS.keys()


def test_other_sizes_are_read_from_the_shapes():
    made = plan(small(), **NO_OPTIONS)
    assert RelaSettings(**made.settings.head.settings) == RelaSettings(
        dim=16, regions=3, decoder_layers=2, decoder_ffn_dim=12, pixel_layers=2, pixel_ffn_dim=20,
        pyramid_channels=(4, 5, 6, 7), legacy=True,
    )  # fmt: skip
    assert made.settings.tower_dim == 24


def test_renaming_there_and_back_changes_no_tensor(fixtures):
    tiny = load_file(fixtures / "rela_tiny" / "weights.safetensors")
    official = {THEIR_REGIONS + name: tensor for name, tensor in tiny.items() if not name.startswith("input_proj")}
    for given in (official, small()):
        back = RENAMING.to_official(RENAMING.from_official(given))
        assert back.keys() == given.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in given.items())


def test_a_head_loads_the_converted_tensors(tmp_path):
    official = small()
    torch.save({"model": official, "optimizer": {}, "iteration": 9}, tmp_path / "c.pth")
    report = convert(tmp_path / "c.pth", out=tmp_path / "w", kind="rela")
    stored = load_file(tmp_path / "w" / "model.safetensors")
    assert stored.keys() == set(report.names.values()) == RENAMING.from_official(official).keys()
    assert all(torch.equal(stored[ours], official[theirs]) for theirs, ours in report.names.items())
    assert not report.needs_tokenizer


def test_every_mismatch_is_in_the_table():
    official = small()
    official[THEIR_REGIONS + "RLA_gate"] = torch.zeros(1)
    del official[THEIR_REGIONS + "lang_weight"]
    official[THEIR_REGIONS + "minimap_embed.weight"] = torch.zeros(3, 16)
    with pytest.raises(KeyTableError) as caught:
        plan(official, **NO_OPTIONS)
    assert set(caught.value.rows) == {
        Mismatch(THEIR_REGIONS + "RLA_gate", "unexpected", (1,)),
        Mismatch(THEIR_REGIONS + "lang_weight", "missing", wanted=()),
        Mismatch(THEIR_REGIONS + "minimap_embed.weight", "wrong shape", (3, 16), (2, 16)),
    }


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": 0}, {"image_size": (480, 480)}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(UsageError, match=r"heads|tower"):
        plan(small(), **(NO_OPTIONS | options))


def test_the_old_name_of_the_regions_is_converted():
    official = small()
    old = {OLD_REGIONS if name == REGIONS else name: tensor for name, tensor in official.items()}
    made, expected = plan(old, **NO_OPTIONS), plan(official, **NO_OPTIONS)
    assert made.settings == expected.settings
    assert made.state.keys() == expected.state.keys()
    assert all(torch.equal(made.state[name], tensor) for name, tensor in expected.state.items())
    assert made.names.keys() == old.keys(), "the report has the names in the file"


@pytest.mark.parametrize("shape", [(10, 16), (9, 12)])
def test_regions_that_make_no_decoder_are_refused(shape):
    official = small() | {REGIONS: torch.zeros(shape)}
    with pytest.raises(KeyTableError, match=r"wrong shape.*query_feat"):
        plan(official, **NO_OPTIONS)


def test_unknown_tensors_are_refused_in_either_direction():
    with pytest.raises(WeightsError, match="resnet"):
        RENAMING.from_official({"resnet.conv1": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"head\.pyramid"):
        RENAMING.to_official({"head.pyramid.stride8.0.bias": torch.zeros(1), OUR_REGIONS + "norm.bias": torch.zeros(1)})
