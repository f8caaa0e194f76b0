"""MRefM against the published code: losses and gradients on the same weights, masks and targets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oneref_fixture import TINY_TOWER
from safetensors.torch import load_file
from torch import Tensor

from refcli.config.pretraining import MRefMSettings, VisualCodeSettings
from refcli.config.schema import HeadChoice, ModelSettings
from refcli.contracts.batch import Batch, Targets
from refcli.grounder import Grounder
from refcli.pretraining import mrefm as module
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.text_masking import MaskedWords
from refcli.pretraining.visual_codes import VisualCodes
from refcli.weights.official.conversions.oneref import from_official
from refcli.weights.transfer import load_pretraining_heads, official_name, save_pretraining_heads

LOSSES, GRADIENTS = 1e-5, 1e-4
NAMES = {
    "box_l1": "loss_bbox",
    "box_giou": "loss_giou",
    "contrast": "loss_contrastive",
    "similarity_focal": "loss_mrm_focal",
    "similarity_dice": "loss_mrm_dice",
    "mim": "loss_mim",
    "visual_target_relation": "loss_mim_vts",
    "mlm": "loss_mlm",
}


class GoldenCodes(VisualCodes):
    """The visual codes that the published run was given."""

    num_codes = 32

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.ids = ids

    @classmethod
    def from_settings(cls, settings, tower):
        raise NotImplementedError

    def ids_of_pixels(self, pixels: Tensor) -> Tensor:
        return self.ids


@dataclass
class Golden:
    io: dict[str, Tensor]
    meta: dict[str, dict]
    mrefm: MRefM
    batch: Batch
    folder: Path


@pytest.fixture
def golden(fixtures, monkeypatch, tmp_path) -> Golden:
    folder = fixtures / "oneref_tiny_mrefm"
    io = load_file(folder / "io.safetensors")
    official = load_file(folder / "weights.safetensors")
    head = HeadChoice(settings={"similarity_truth": "mask", "loss_weights": {"contrast": 1.0}})
    grounder = Grounder.from_settings(ModelSettings(tower=TINY_TOWER, head=head))
    converted = from_official(official)
    grounder.load_state_dict(converted.state, strict=True)
    settings = MRefMSettings(loss_weights={"semantic_target_relation": 0.0})
    mrefm = MRefM(grounder, settings, codes=GoldenCodes(io["vq_ids"]), teacher=None, mask_id=191, seed=0)
    mrefm.heads.load_state_dict({name: official[official_name(name)] for name in mrefm.heads.state_dict()})
    monkeypatch.setattr(module, "mask_patches", lambda *_, **__: io["mim_masked_pos"])
    monkeypatch.setattr(module, "visual_target_relation", lambda *_, **__: io["mim_vts_labels"])
    masked = MaskedWords(io["masked_token_ids"], io["language_masked_pos"].bool())
    monkeypatch.setattr(module, "mask_words", lambda *_, **__: masked)
    all_true = torch.ones(4, dtype=torch.bool)
    batch = Batch(
        io["images"],
        io["token_ids"],
        io["padding_mask"].bool(),
        Targets(io["target_box"], io["target_mask"][:, 0].bool(), all_true, all_true),
        ("a", "b", "c", "d"),
    )
    return Golden(io, json.loads((folder / "meta.json").read_text())["cases"], mrefm.eval(), batch, folder)


def official_sts_loss(golden: Golden) -> Tensor:
    """The published term: divergence of two softmaxes of softmaxes over slots 1..T-2, padding among them."""
    features = golden.mrefm.grounder.tower(
        golden.batch.images, golden.io["masked_token_ids"], golden.batch.token_is_pad
    )
    products = golden.mrefm.word_products(features)[:, 1:-1]
    predicted = golden.mrefm.heads.semantic_target_relation(products).squeeze(-1).softmax(-1)
    torch.testing.assert_close(predicted, golden.io["mlm.mlm_sts_pred"], rtol=0, atol=5e-6)
    truth = golden.io["mlm_sts_labels"].softmax(-1)
    return F.kl_div(predicted.log_softmax(-1), truth, reduction="batchmean")


@pytest.mark.parametrize("case", ["mim", "mlm", "mlm_late"])
def test_every_loss_equals_the_official_one(golden, case):
    official = golden.meta[case]["losses"]
    with torch.no_grad():
        losses = golden.mrefm(golden.batch, golden.meta[case]["global_step"])
        sts = official_sts_loss(golden)

    assert {NAMES[name] for name in losses} | {"loss_mlm_sts"} >= set(official)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(official[NAMES[name]], abs=LOSSES), name
    if "loss_mlm_sts" in official:
        assert sts.item() == pytest.approx(official["loss_mlm_sts"], abs=LOSSES)


@pytest.mark.parametrize("case", ["mim", "mlm"])
def test_every_gradient_equals_the_official_one(golden, case):
    total = sum(golden.mrefm(golden.batch, golden.meta[case]["global_step"]).values())
    if case == "mlm":
        total = total + official_sts_loss(golden)
    total.backward()
    official = load_file(golden.folder / f"grads_{case}.safetensors")
    heads = {f"heads.{name}": official_name(name) for name in golden.mrefm.heads.state_dict()}
    theirs = {f"grounder.{name}": gradient for name, gradient in from_official(official).state.items()}
    theirs |= {ours: official[name] for ours, name in heads.items() if name in official}
    assert len(theirs) > 60

    for name, gradient in theirs.items():
        ours = golden.mrefm.get_parameter(name).grad
        assert (ours - gradient).norm() <= GRADIENTS * gradient.norm() + 1e-7, name


def test_pretraining_heads_survive_the_round_trip(golden, tmp_path):
    save_pretraining_heads(tmp_path, golden.mrefm.heads)
    saved = {name: tensor.clone() for name, tensor in golden.mrefm.heads.state_dict().items()}
    for parameter in golden.mrefm.heads.parameters():
        torch.nn.init.zeros_(parameter)

    notes = load_pretraining_heads(tmp_path, golden.mrefm.heads)

    assert notes == ()
    for name, tensor in golden.mrefm.heads.state_dict().items():
        assert torch.equal(tensor, saved[name])


def test_heads_of_another_codebook_start_fresh_and_are_named(golden, tmp_path):
    save_pretraining_heads(tmp_path, golden.mrefm.heads)
    other = type(golden.mrefm.heads)(TINY_TOWER, num_codes=VisualCodeSettings().num_codes)

    notes = load_pretraining_heads(tmp_path, other)

    assert notes == ("newly initialised: the pre-training heads mim",)
    assert torch.equal(other.mlm.weight, golden.mrefm.heads.mlm.weight)
