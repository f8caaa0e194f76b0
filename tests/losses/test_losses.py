"""Every loss equals the official one, value and gradient, at the published sizes."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from refcli.heads.oneref.losses import patch_truth
from refcli.losses.averages import mean_over
from refcli.losses.boxes import box_giou, box_l1
from refcli.losses.contrast import clip_contrast
from refcli.losses.masks import dice, sigmoid_focal

ALL = torch.ones(6, dtype=torch.bool)


@pytest.fixture
def golden(fixtures):
    return load_file(fixtures / "losses" / "io.safetensors")


@pytest.fixture
def values(fixtures):
    return json.loads((fixtures / "losses" / "meta.json").read_text())["losses"]


def test_box_losses_equal_the_official_ones(golden, values):
    predicted = golden["pred_box"].requires_grad_()
    l1, giou = box_l1(predicted, golden["target_box"], ALL), box_giou(predicted, golden["target_box"], ALL)
    assert l1.item() == pytest.approx(values["loss_bbox"], abs=1e-5)
    assert giou.item() == pytest.approx(values["loss_giou"], abs=1e-5)
    (l1 + giou).backward()
    torch.testing.assert_close(predicted.grad, golden["grad.pred_box"], rtol=1e-4, atol=1e-7)


def test_similarity_losses_equal_the_official_ones(golden, values):
    similarity = golden["visu_sim"].requires_grad_()
    truth = patch_truth(golden["target_mask"][:, 0].bool(), (24, 24)).flatten(1)
    focal, overlap = 20 * sigmoid_focal(similarity, truth).mean(), 2 * dice(similarity, truth).mean()
    assert focal.item() == pytest.approx(values["loss_mrm_focal"], abs=1e-5)
    assert overlap.item() == pytest.approx(values["loss_mrm_dice"], abs=1e-5)
    (focal + overlap).backward()
    torch.testing.assert_close(similarity.grad, golden["grad.visu_sim"], rtol=1e-4, atol=1e-8)


def test_mask_losses_equal_the_official_ones(golden, values):
    cosine = golden["seg_mask"].requires_grad_()
    truth = golden["target_mask"].float().flatten(1)
    logits = F.interpolate(cosine, (96, 96), mode="bilinear", align_corners=False).flatten(1)
    focal, overlap = 20 * sigmoid_focal(logits, truth).mean(), 2 * dice(logits, truth).mean()
    assert focal.item() == pytest.approx(values["loss_seg_focal"], abs=1e-5)
    assert overlap.item() == pytest.approx(values["loss_seg_dice"], abs=1e-5)
    (focal + overlap).backward()
    torch.testing.assert_close(cosine.grad, golden["grad.seg_mask"], rtol=1e-4, atol=1e-8)


def test_samples_that_do_not_count_leave_the_mean_alone():
    counts = torch.tensor([True, False, True])
    assert mean_over(torch.tensor([1.0, 100.0, 3.0]), counts) == 2.0
    assert mean_over(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.bool)) == 0.0


def test_contrast_is_lowest_when_every_pair_matches():
    vectors = F.normalize(torch.randn(5, 16), dim=-1)
    scale = torch.tensor(20.0)
    assert (clip_contrast(vectors, vectors, scale) < clip_contrast(vectors, vectors.roll(1, 0), scale)).all()
