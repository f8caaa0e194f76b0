"""Official names are converted to ours completely, or refused."""

import json

import pytest
import torch

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import WeightsError
from refcli.grounder import Grounder
from refcli.weights.official.conversions.oneref import from_official


def official_tensors(layers=1, dim=8):
    names = [f"beit3.encoder.layers.{i}.self_attn.{p}_proj.A.weight" for i in range(layers) for p in "qkv"]
    return {name: torch.randn(dim, dim) for name in names}


def test_projections_are_stacked_in_the_order_query_key_value():
    official = official_tensors()
    state = from_official(dict(reversed(official.items()))).state
    assert list(state) == ["tower.encoder.blocks.0.attention.qkv.vision.weight"]
    assert torch.equal(next(iter(state.values())), torch.cat(list(official.values())))


def test_an_incomplete_triple_is_an_error():
    official = official_tensors()
    official.popitem()
    with pytest.raises(WeightsError, match="only q/k present"):
        from_official(official)


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(WeightsError, match=r"resnet\.conv1"):
        from_official(official_tensors() | {"resnet.conv1": torch.zeros(1)})


def test_tensors_that_no_answer_depends_on_are_dropped_and_listed():
    official = official_tensors() | {"text_proj.weight": torch.zeros(1), "mlm_head.bias": torch.zeros(1)}
    assert from_official(official).left_out == ("text_proj.weight", "mlm_head.bias")


@pytest.mark.parametrize(("size", "res"), [("base", False), ("base", True), ("large", False), ("large", True)])
def test_the_published_layouts_fill_our_models_exactly(fixtures, size, res):
    keys = json.loads((fixtures / "keys" / f"oneref_{size}_384_{'res' if res else 'rec'}.json").read_text())["tensors"]
    dims = {"base": {}, "large": {"dim": 1024, "layers": 24, "heads": 16, "ffn_dim": 4096}}[size]
    head = HeadChoice(settings={"res": res, "loss_weights": {"contrast": 1.0}})
    with torch.device("meta"):
        official = {name: torch.empty(entry["shape"]) for name, entry in keys.items()}
        ours = Grounder.from_settings(ModelSettings(tower=TowerSettings(**dims), head=head)).state_dict()
    converted = from_official(official)
    assert {name: t.shape for name, t in converted.state.items()} == {name: t.shape for name, t in ours.items()}
    assert set(converted.left_out) == {"text_proj.weight", "text_proj.bias"}
