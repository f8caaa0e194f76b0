"""Boxes as plain numbers: area, IoU and GIoU, and the box around several; for tensors see `box_tensors`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

BoxXYXY: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""
_LARGEST_EDGE = 1e15


def is_finite(box: BoxXYXY) -> bool:
    """Whether all four numbers are finite, and small enough that areas are too."""
    return all(abs(edge) < _LARGEST_EDGE for edge in box)


def box_area(box: BoxXYXY) -> float:
    """Area; 0 where the right (bottom) edge is not beyond the left (top) edge."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def box_iou(a: BoxXYXY, b: BoxXYXY) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union if union > 0 else 0.0


def overlap_matrices(
    found: Sequence[BoxXYXY], truth: Sequence[BoxXYXY]
) -> tuple[Float[np.ndarray, "found truth"], Float[np.ndarray, "found truth"]]:
    """(IoU, GIoU) of every found box with every true one (Rezatofighi et al., CVPR 2019, eq. 6).

    The IoU is `box_iou`'s, for many boxes at once. Two empty boxes have IoU 0 and GIoU 0; a found box that is not
    finite has IoU 0 and GIoU -1 with every true one.
    """
    a = np.array(found, dtype=np.float64).reshape(-1, 1, 4)
    b = np.array(truth, dtype=np.float64).reshape(1, -1, 4)
    is_box = np.array([is_finite(box) for box in found], dtype=np.bool_).reshape(-1, 1)
    a = np.where(is_box[..., None], a, 0.0)
    intersection = _areas(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _areas(a[..., :2], a[..., 2:]) + _areas(b[..., :2], b[..., 2:]) - intersection
    hull = _areas(np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:]))
    iou = intersection / np.where(union > 0, union, 1.0)
    giou = iou - (hull - union) / np.where(hull > 0, hull, 1.0)
    return np.where(is_box, iou, 0.0), np.where(is_box, giou, -1.0)


def _areas(top_left: np.ndarray, bottom_right: np.ndarray) -> np.ndarray:
    sides = np.maximum(bottom_right - top_left, 0.0)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas


def enclosing_box(boxes: Sequence[BoxXYXY]) -> BoxXYXY | None:
    """The smallest box around all boxes; None where there are none."""
    if len(boxes) <= 1:
        return boxes[0] if boxes else None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)
