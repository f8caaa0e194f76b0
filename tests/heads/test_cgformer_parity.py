"""`legacy` computes what the published CGFormer code computes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Targets
from refcli.heads.cgformer import grouping
from refcli.heads.cgformer.head import CGFormerHead, CGFormerSettings
from refcli.heads.shared.simple_pyramid import PyramidMaps
from refcli.model.beit3 import Features
from refcli.weights.official.conversions.cgformer import RENAMING

NOTHING = 1e-6
"""Gradients of a smaller norm are rounding: those of biases that a BatchNorm takes out again."""
TOWER = TowerSettings(image_size=64, dim=20, heads=2)


@pytest.fixture
def official(fixtures):
    """Inputs and outputs of the published decoder, and ours with its weights for either case of noise."""
    folder = fixtures / "cgformer_tiny"
    expected = load_file(folder / "io.safetensors")
    weights = {f"decoder.{name}": tensor for name, tensor in load_file(folder / "weights.safetensors").items()}

    def head(case: str, monkeypatch) -> CGFormerHead:
        noise = {"zero": "never", "noise": "always"}[case]
        settings = {"dim": 16, "pyramid_channels": (8, 12, 16, 24), "position_grid": (4, 4), "dropout": 0.0}
        ours = CGFormerHead(CGFormerSettings(**settings, legacy=True, noise=noise), TOWER)
        state = {name.removeprefix("head."): tensor for name, tensor in RENAMING.from_official(weights).items()}
        assert not ours.load_state_dict(state, strict=False).unexpected_keys
        draws = iter(expected[f"noise.{level}"] for level in range(3))
        monkeypatch.setattr(grouping, "gumbel_like", lambda x: next(draws))
        maps = PyramidMaps(*(expected[f"c{level}"] for level in (1, 2, 3, 4)))
        ours.pyramid.forward = lambda patches, grid: maps
        return ours

    batch, _, dim = expected["text_feats"].shape
    is_pad = expected["text_mask"] == 0
    features = Features(torch.zeros(batch, 17, dim), expected["text_feats"], is_pad, (4, 4), (64, 64))
    return head, features, expected, json.loads((folder / "meta.json").read_text())


@pytest.mark.parametrize("case", ["zero", "noise"])
def test_legacy_answers_as_the_published_code(official, monkeypatch, case):
    make_head, features, expected, _ = official
    head = make_head(case, monkeypatch).eval()
    output = head(features)
    raw = head.projector(output.decoded.maps, output.decoded.tokens[:, -1])
    torch.testing.assert_close(raw[:, None], expected[f"{case}.decoder_out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.mask_logits[:, None], expected[f"{case}.pred_at_input_size"], rtol=0, atol=1e-5)
    for level, group in enumerate(output.decoded.levels):
        truth = expected[f"{case}.map.{level}"].flatten(2)
        torch.testing.assert_close(group.assignment, truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["zero", "noise"])
def test_legacy_trains_as_the_published_code(official, monkeypatch, case):
    make_head, features, expected, meta = official
    head = make_head(case, monkeypatch).train()
    output = head(features)
    masks = expected["gt_mask"].bool()
    every = torch.ones(2, dtype=torch.bool)
    loss = sum(head.losses(output, Targets(torch.zeros(2, 4), masks, every, every)).values())
    torch.testing.assert_close(loss.item(), meta["losses"][case], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.mask_logits[:, None], expected[f"{case}.train_pred"], rtol=1e-5, atol=5e-5)
    if case == "zero":
        return  # its gradients are not in the fixture
    loss.backward()
    ours = {f"head.{n}": p.grad for n, p in head.named_parameters() if n.startswith(("decoder.", "projector."))}
    gradients = RENAMING.to_official(ours)
    assert {f"grad.{name.removeprefix('decoder.')}" for name in gradients} == {
        name for name in expected if name.startswith("grad.")
    }
    for name, gradient in gradients.items():
        truth = expected[f"grad.{name.removeprefix('decoder.')}"]
        if truth.norm() < NOTHING:
            assert gradient.norm() < NOTHING, name
        else:  # computed in float64, the first temperature's (4e-4, a sum that nearly cancels) is 1e-7 from the fixture
            assert (gradient - truth).norm() <= 1e-4 * truth.norm() + 3e-7, name
