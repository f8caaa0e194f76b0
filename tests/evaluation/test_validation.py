"""Validation in the model frame: IoU, hits and existence by hand-made predictions."""

from __future__ import annotations

import pytest
import torch

from refcli.contracts.batch import Batch, Targets
from refcli.contracts.prediction import Prediction
from refcli.errors import DataError
from refcli.evaluation.validation import mask_iou_pairs, validate

SIDE = 8


class FixedGrounder(torch.nn.Module):
    """A grounder that always returns the same prediction."""

    def __init__(self, **parts) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        samples = next(len(value) for value in parts.values() if isinstance(value, torch.Tensor))
        empty = {"boxes_xyxy": None, "mask_logits": None, "existence": None, "scores": torch.ones(samples, 1)}
        self.prediction = Prediction(**{**empty, **parts})

    def predict(self, images, token_ids, token_is_pad):
        return self.prediction


def make_batch(boxes_xyxy, *, exists=None, masks=None, mask_is_known=None) -> Batch:
    boxes = torch.tensor(boxes_xyxy, dtype=torch.float32) / SIDE
    count = len(boxes)
    centre_and_size = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    yes = torch.ones(count, dtype=torch.bool)
    return Batch(
        images=torch.zeros(count, 3, SIDE, SIDE),
        token_ids=torch.zeros(count, 2, dtype=torch.int64),
        token_is_pad=torch.zeros(count, 2, dtype=torch.bool),
        targets=Targets(
            boxes_cxcywh=centre_and_size,
            masks=torch.zeros(count, SIDE, SIDE, dtype=torch.bool) if masks is None else masks,
            mask_is_known=yes if mask_is_known is None else torch.tensor(mask_is_known),
            exists=yes if exists is None else torch.tensor(exists),
        ),
        ids=tuple(map(str, range(count))),
    )


def test_boxes_are_scored_in_pixels_of_the_model_frame():
    boxes = torch.tensor([[[0.0, 0, 4, 4]], [[0, 0, 4, 2]]])
    scores = validate(FixedGrounder(boxes_xyxy=boxes), [make_batch([[0, 0, 4, 4], [0, 0, 4, 8]])])

    assert scores == {"box_iou": 0.625, "box_accuracy": 0.5, "score": 0.625}


def test_a_mask_of_everything_is_joined_with_the_targets_that_predict_keeps():
    masks = torch.full((1, 3, SIDE, SIDE), -1.0)
    masks[0, 0, :2], masks[0, 1, 2:4], masks[0, 2, 4:6] = 1.0, 1.0, 1.0
    union = torch.full((1, SIDE, SIDE), -1.0)
    union[0, 6:] = 1.0
    truth = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    for scores, share in (([0.9, 0.8, 0.1], 6 / 8), ([0.1, 0.2, 0.3], 4 / 8)):
        parts = {"scores": torch.tensor([scores]), "score_threshold": 0.7, "union_mask_logits": union}
        found = validate(FixedGrounder(mask_logits=masks, **parts), [make_batch([[0, 0, 8, 8]], masks=truth)])

        assert found["mask_iou"] == share


def test_exactly_half_is_a_hit_as_in_the_official_figures():
    boxes = torch.tensor([[[0.0, 0, 4, 4]]])
    scores = validate(FixedGrounder(boxes_xyxy=boxes), [make_batch([[0, 0, 4, 8]])])

    assert (scores["box_iou"], scores["box_accuracy"]) == (0.5, 1.0)


def test_the_best_scored_target_counts():
    boxes = torch.tensor([[[5.0, 5, 8, 8], [0, 0, 4, 4]]])
    grounder = FixedGrounder(boxes_xyxy=boxes, scores=torch.tensor([[0.2, 0.7]]))

    assert validate(grounder, [make_batch([[0, 0, 4, 4]])])["box_iou"] == 1.0


def test_samples_without_a_target_count_for_existence_only():
    boxes = torch.tensor([[[0.0, 0, 4, 4]], [[0, 0, 1, 1]]])
    grounder = FixedGrounder(boxes_xyxy=boxes, existence=torch.tensor([0.9, 0.8]))
    scores = validate(grounder, [make_batch([[0, 0, 4, 4], [0, 0, 0, 0]], exists=[True, False])])

    assert scores == {"box_iou": 1.0, "box_accuracy": 1.0, "existence_accuracy": 0.5, "score": 0.75}


def test_masks_are_compared_at_the_truths_resolution_and_only_where_they_are_known():
    truth = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    truth[0, :, :4] = True
    logits = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    scores = validate(
        FixedGrounder(mask_logits=logits), [make_batch([[0, 0, 4, 8]] * 2, masks=truth, mask_is_known=[True, False])]
    )

    assert (scores["mask_iou"], scores["mask_accuracy"]) == (1.0, 1.0)


def test_mask_iou_equals_counting_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, SIDE, SIDE, generator=generator)
    masks = torch.rand(5, SIDE, SIDE, generator=generator) > 0.6
    expected = []
    for drawn, truth in zip((logits > 0).flatten(1).tolist(), masks.flatten(1).tolist(), strict=True):
        pairs = list(zip(drawn, truth, strict=True))
        expected.append(sum(one and other for one, other in pairs) / sum(one or other for one, other in pairs))

    assert mask_iou_pairs(logits, masks).tolist() == pytest.approx(expected)


def test_samples_have_the_same_weight_in_any_batches():
    boxes = torch.tensor([[[0.0, 0, 4, 4]]])
    one, other = make_batch([[0, 0, 4, 4]]), make_batch([[0, 0, 4, 8]])
    three = validate(FixedGrounder(boxes_xyxy=boxes), [one, one, other])

    assert three["box_iou"] == pytest.approx(2.5 / 3, abs=1e-5)


def test_nothing_to_score_is_a_data_error():
    boxes = torch.tensor([[[0.0, 0, 4, 4]]])

    with pytest.raises(DataError, match="nothing"):
        validate(FixedGrounder(boxes_xyxy=boxes), [make_batch([[0, 0, 0, 0]], exists=[False])])
