"""Boxes of truth and answer against each other: IoU, GIoU, matching and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Box: TypeAlias = tuple[float, float, float, float]
"""xyxy in pixels of the original image."""
_BEYOND_IMAGES = 1e15
MATCH_OVERLAP = 0.5
"""From this IoU (GIoU) on, a box is found (every paper of the field)."""


def enclosing_box(boxes: Sequence[Box]) -> Box | None:
    """The smallest xyxy box around all boxes, or None for no boxes."""
    if not boxes:
        return None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def pair_iou(a: Box, b: Box | None) -> float:
    """Intersection over union of two xyxy boxes; 0 where there is no second box or both are empty."""
    if b is None:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union if union > 0 else 0.0


def box_area(box: Box) -> float:
    """Area; 0 where the right (bottom) edge is not beyond the left (top) edge."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def is_finite(box: Box) -> bool:
    """Whether all four numbers are finite, and small enough that areas are too."""
    return all(abs(edge) < _BEYOND_IMAGES for edge in box)


def overlap_matrices(
    found: Sequence[Box], truth: Sequence[Box]
) -> tuple[Float[np.ndarray, "found truth"], Float[np.ndarray, "found truth"]]:
    """(IoU, GIoU) of every answered box with every true one (Rezatofighi et al., CVPR 2019, eq. 6).

    Two empty boxes have IoU 0 and GIoU 0; a box that is not finite has IoU 0 and GIoU -1 with every other.
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


def greedy_matches(overlaps: Float[np.ndarray, "found truth"]) -> int:
    """How many pairs are matched when the largest overlap of at least 0.5 is taken again and again.

    This is the published GREC evaluator's way (gRefCOCO). Where boxes crowd, a maximum matching can find more pairs.
    """
    left = overlaps.copy()
    num_pairs = 0
    while left.size and left.max() >= MATCH_OVERLAP:
        found, truth = np.unravel_index(left.argmax(), left.shape)
        left[found, :] = left[:, truth] = -np.inf
        num_pairs += 1
    return num_pairs


def first_hit(ious_by_rank: Float[np.ndarray, "found truth"]) -> int:
    """The place (from 1) of the first box with an IoU of at least 0.5 with any true box; 0 where there is none."""
    hits = np.flatnonzero((ious_by_rank >= MATCH_OVERLAP).any(axis=1))
    return int(hits[0]) + 1 if len(hits) else 0
