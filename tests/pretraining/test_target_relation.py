"""The two relation scores have the targets of the paper and the official code."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from refcli.config.pretraining import SemanticTargetSettings
from refcli.pretraining.semantic_target_relation import crop_regions, semantic_target_relation
from refcli.pretraining.visual_target_relation import visual_target_relation

ROOT = Path(__file__).resolve().parents[2]
BOXES = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.7, 0.35, 0.25], [0.03, 0.98, 0.02, 0.02], [0.0, 0.0, 0.0, 0.0]])


def test_the_visual_relation_is_the_official_one(fixtures):
    golden = np.load(fixtures / "masking" / "visual_target_relation.npz")
    boxes = torch.from_numpy(golden["boxes_cxcywh"]).float()
    for rows, columns in ((24, 24), (14, 14), (30, 30), (20, 28)):
        relation = visual_target_relation(boxes, (rows, columns), place="corner")
        for number in range(len(boxes)):
            official = torch.from_numpy(golden[f"vts_{rows}x{columns}_box{number}"]).float()
            torch.testing.assert_close(relation[number], official, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("place", "offset"), [("corner", 0.0), ("centre", 0.5)])
def test_the_visual_relation_equals_a_plain_loop(place, offset):
    loop_relation = runpy.run_path(str(ROOT / "benchmarks" / "masking.py"))["loop_relation"]
    expected = torch.tensor([loop_relation(box, (7, 11), offset) for box in BOXES.tolist()])
    torch.testing.assert_close(visual_target_relation(BOXES, (7, 11), place=place), expected)


def test_the_patch_around_the_boxs_centre_has_no_distance_from_it():
    box = torch.tensor([[2.5 / 8, 4.5 / 6, 0.25, 0.5]])  # in the middle of column 2, row 4 of 6 x 8
    relation = visual_target_relation(box, (6, 8), place="centre").unflatten(1, (6, 8))
    torch.testing.assert_close(relation[0, 4, 2], torch.tensor([0.0, 0.0, 1 / 2, 1 / 3]))


def test_a_crop_shows_the_box_on_the_whole_frame():
    height, width = 40, 60
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    images = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)]).repeat(
        2, 1, 1, 1
    )
    boxes = torch.tensor([[0.6, 0.4, 0.5, 0.2], [0.6, 0.4, 0.5, 0.2]])
    crops = crop_regions(images, boxes, torch.tensor([True, False]))
    torch.testing.assert_close(crops[0, 0], (0.35 + 0.5 * x).expand(height, width))
    torch.testing.assert_close(crops[0, 1], (0.3 + 0.2 * y)[:, None].expand(height, width))
    torch.testing.assert_close(crops[1], images[1])


def test_word_scores_are_the_weighted_mean_of_two_softmaxes_over_the_words_that_count():
    torch.manual_seed(0)
    region, image, words = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 6, 8)
    counts = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    settings = SemanticTargetSettings(region_weight=3.0, image_weight=1.0, scale=5.0)
    scores = semantic_target_relation(region, image, words, counts, settings)

    expected = torch.zeros(3, 6)
    for sample in range(3):
        for image_class, weight in ((region, 0.75), (image, 0.25)):
            shares = {
                word: math.exp(5 * torch.cosine_similarity(image_class[sample], words[sample, word], dim=0).item())
                for word in range(6)
                if counts[sample, word]
            }
            for word, share in shares.items():
                expected[sample, word] += weight * share / sum(shares.values())
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert (scores[~counts] == 0).all()


def test_words_that_do_not_count_change_nothing():
    torch.manual_seed(0)
    region, image, words = torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 5, 8)
    counts = torch.tensor([[False, True, True, False, False]] * 2)
    scores = semantic_target_relation(region, image, words, counts, SemanticTargetSettings())
    words[~counts] = 100.0
    assert torch.equal(scores, semantic_target_relation(region, image, words, counts, SemanticTargetSettings()))


def test_a_word_like_the_region_gets_the_larger_share():
    region, image = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    words, counts = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), torch.ones(1, 2, dtype=torch.bool)
    settings = SemanticTargetSettings(region_weight=0.8, image_weight=0.2)
    high, low = semantic_target_relation(region, image, words, counts, settings)[0]
    assert high > 0.75 > 0.25 > low
