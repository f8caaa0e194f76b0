"""The tower and the OneRef heads equal the official implementation, number by number."""

from __future__ import annotations

import pytest
import torch
from oneref_fixture import Golden, load_golden
from safetensors.torch import load_file

from refcli.weights.official.conversions.oneref import from_official

ROWS, HEADS, LOSSES = 2e-5, 5e-6, 1e-5
NUM_VISION = 17
OFFICIAL_LOSS_NAMES = {
    "box_l1": "loss_bbox",
    "box_giou": "loss_giou",
    "contrast": "loss_contrastive",
    "similarity_focal": "loss_mrm_focal",
    "similarity_dice": "loss_mrm_dice",
    "mask_focal": "loss_seg_focal",
    "mask_dice": "loss_seg_dice",
}


@pytest.fixture(params=["rec", "res"])
def golden(request, fixtures) -> Golden:
    return load_golden(fixtures / f"oneref_tiny_{request.param}", res=request.param == "res")


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def real_rows(joined, is_pad):
    """Vision tokens and the text tokens that are not padding; the others are never used."""
    return torch.cat([joined[:, :NUM_VISION].flatten(0, 1), joined[:, NUM_VISION:][~is_pad]])


def test_every_hidden_state_equals_the_official_one(golden):
    batch = golden.batch()
    with torch.no_grad():
        features = golden.grounder.tower(batch.images, batch.token_ids, batch.token_is_pad, keep_hidden=(0, 1, 2, 3))
    for layer, rows in features.hidden.items():
        ours = torch.cat([rows.vision, rows.text], 1)
        theirs = golden.io[f"hidden.{layer}"]
        close(real_rows(ours, batch.token_is_pad), real_rows(theirs, batch.token_is_pad), ROWS)
    ours = torch.cat([features.vision, features.text], 1)
    close(real_rows(ours, batch.token_is_pad), real_rows(golden.io["encoder_out"], batch.token_is_pad), ROWS)
    assert set(features.hidden) == {0, 1, 2, 3}


def test_each_modality_alone_equals_the_official_encoder(golden):
    batch = golden.batch()
    tower = golden.grounder.tower
    with torch.no_grad():
        close(tower.encode_images(batch.images), golden.io["vision_only_encoder_out"], ROWS)
        text = tower.encode_texts(batch.token_ids, batch.token_is_pad)
    real = ~batch.token_is_pad
    close(text[real], golden.io["text_only_encoder_out"][real], ROWS)


@pytest.mark.parametrize("how", ["sdpa", "explicit"])
def test_heads_equal_the_official_ones(golden, how):
    batch = golden.batch()
    for block in golden.grounder.tower.encoder.blocks:
        block.attention.how = how
    with torch.no_grad():
        output = golden.grounder.head(golden.grounder.tower(batch.images, batch.token_ids, batch.token_is_pad))
    close(output.boxes_cxcywh, golden.io["pred_box"], HEADS)
    close(output.vision_class, golden.io["vision_cls"], HEADS)
    close(output.language_class, golden.io["language_cls"], HEADS)
    close(output.similarity, golden.io["visu_token_similarity"], HEADS)
    if "seg_mask" in golden.io:
        close(output.mask_cosine, golden.io["seg_mask"][:, 0], HEADS)


def test_heads_in_float64_equal_the_official_float64_values(golden):
    batch = golden.batch()
    grounder = golden.grounder.double()
    with torch.no_grad():
        features = grounder.tower(batch.images.double(), batch.token_ids, batch.token_is_pad)
        output = grounder.head(features)
    close(output.boxes_cxcywh, golden.io["f64.pred_box"], 1e-10)
    if output.mask_cosine is not None:
        close(output.mask_cosine, golden.io["f64.seg_mask"][:, 0], 1e-10)
    close(output.similarity, golden.io["f64.visu_token_similarity"], 1e-10)
    close(output.vision_class, golden.io["f64.vision_cls"], 1e-10)
    close(output.language_class, golden.io["f64.language_cls"], 1e-10)


def test_losses_and_gradients_equal_the_official_ones(golden):
    losses = golden.grounder(golden.batch(), step=0)
    assert set(losses) == {ours for ours, theirs in OFFICIAL_LOSS_NAMES.items() if theirs in golden.losses}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(golden.losses[OFFICIAL_LOSS_NAMES[name]], abs=LOSSES), name
    sum(losses.values()).backward()
    theirs = from_official(golden.gradients).state
    ours = {name: p.grad for name, p in golden.grounder.named_parameters() if p.grad is not None}
    assert ours.keys() >= theirs.keys()
    for name, gradient in theirs.items():
        relative = (ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert relative < 1e-4, f"{name}: {relative:.2e}"


def test_trimming_the_text_changes_nothing(golden):
    batch = golden.batch()
    longest = int((~batch.token_is_pad[1:]).sum(1).max())
    with torch.no_grad():
        whole = golden.grounder.predict(batch.images[1:], batch.token_ids[1:], batch.token_is_pad[1:])
        trimmed = golden.grounder.predict(
            batch.images[1:], batch.token_ids[1:, :longest], batch.token_is_pad[1:, :longest]
        )
    assert longest < batch.token_ids.shape[1]
    close(trimmed.boxes_xyxy / 64, whole.boxes_xyxy / 64, HEADS)


def test_bfloat16_stays_near_the_official_values(golden):
    batch = golden.batch()
    grounder = golden.grounder.bfloat16()
    with torch.no_grad():
        features = grounder.tower(batch.images.bfloat16(), batch.token_ids, batch.token_is_pad)
        output = grounder.head(features)
    close(output.boxes_cxcywh.float(), golden.io["pred_box"], 1e-2)
    close(output.similarity.float(), golden.io["visu_token_similarity"], 2e-2)
    if output.mask_cosine is not None:
        close(output.mask_cosine, golden.io["seg_mask"][:, 0], 4e-2)


def test_the_mask_head_in_training_mode_equals_the_official_one(fixtures):
    golden = load_golden(fixtures / "oneref_tiny_res", res=True)
    batch = golden.batch()
    golden.grounder.train()
    features = golden.grounder.tower(batch.images, batch.token_ids, batch.token_is_pad)
    output = golden.grounder.head(features)
    close(output.mask_cosine, golden.io["train_mode.seg_mask"][:, 0], HEADS)
    losses = golden.grounder.head.losses(output, batch.targets)
    for name in ("mask_focal", "mask_dice"):
        expected = golden.meta["losses_train_mode"][OFFICIAL_LOSS_NAMES[name]]
        assert losses[name].item() == pytest.approx(expected, abs=LOSSES)
    (losses["mask_focal"] + losses["mask_dice"]).backward()
    for step, block in enumerate(golden.grounder.head.upsampler, start=1):
        after = golden.io[f"train_mode.after.bn{step}.running_var"]
        close(block.norm.running_mean, golden.io[f"train_mode.after.bn{step}.running_mean"], ROWS)
        close(block.norm.running_var, after, ROWS)
    theirs = load_file(golden.folder / "grads_train_mode_seg.safetensors")
    ours = dict(golden.grounder.named_parameters())
    for name, gradient in from_official({k: v for k, v in theirs.items() if k.startswith(("seg", "bn"))}).state.items():
        relative = (ours[name].grad - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert relative < 1e-4, f"{name}: {relative:.2e}"
