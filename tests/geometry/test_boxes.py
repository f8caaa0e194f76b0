"""IoU and GIoU of boxes of plain numbers, and the box around several."""

from __future__ import annotations

import random

import numpy as np
from safetensors.torch import load_file

from refcli.geometry.boxes import box_iou, enclosing_box, overlap_matrices

LEFT = (0.0, 0.0, 100.0, 100.0)


def test_giou_equals_the_published_matrix(fixtures):
    tensors = load_file(fixtures / "metrics/io.safetensors")
    found, truth = (list(map(tuple, tensors[name][:16].double().tolist())) for name in ("xyxy_pred", "xyxy_gt"))
    _, giou = overlap_matrices(found, truth)
    np.testing.assert_allclose(giou, tensors["giou_matrix_first16"].numpy(), atol=1e-6)


def test_overlaps_of_degenerate_and_lost_boxes_are_never_nan():
    point, inverted = (5.0, 5.0, 5.0, 5.0), (60.0, 0.0, 40.0, 100.0)
    lost = (float("nan"), 0.0, float("inf"), 1.0)
    iou, giou = overlap_matrices([point, inverted, lost], [point, LEFT])
    assert np.isfinite(iou).all()
    assert np.isfinite(giou).all()
    assert iou.max() == 0
    assert giou.max() <= 0
    assert giou[2].tolist() == [-1.0, -1.0]


def test_box_iou_of_degenerate_boxes_is_zero_and_never_nan():
    point = (5.0, 5.0, 5.0, 5.0)
    assert box_iou(point, point) == 0.0
    assert box_iou(LEFT, (60.0, 0.0, 40.0, 100.0)) == 0.0
    assert enclosing_box([]) is None


def test_single_pairs_and_matrices_give_the_same_bits():
    draw = random.Random(0)
    boxes = [tuple(draw.choice([0.0, 7.0, draw.uniform(-20, 90)]) for _ in range(4)) for _ in range(60)]
    iou, _ = overlap_matrices(boxes, boxes)
    assert [[box_iou(a, b) for b in boxes] for a in boxes] == iou.tolist()


def test_the_enclosing_box_reaches_to_the_outermost_edges():
    assert enclosing_box([(1.0, 5.0, 3.0, 6.0), (2.0, 0.0, 9.0, 4.0)]) == (1.0, 0.0, 9.0, 6.0)
