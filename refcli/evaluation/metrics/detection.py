"""COCO's average precision with descriptions as classes (D-cube, NeurIPS 2023)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.box_matches import TEN_THRESHOLDS
from refcli.evaluation.sample_columns import ScoreColumns

RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO samples the precision."""


def coco_map(scores: ScoreColumns) -> float | None:
    """COCO's AP at IoU 0.50:0.95 over pairs of image and description: the mean over descriptions with any target.

    All boxes count, at most the best 100 of a sample, before "no target" and whatever their score. Boxes of equal
    score are in the order of the samples (pycocotools: of the image ids). None where expressions are not descriptions
    of classes, boxes have no scores (all are equal), or there is no target.
    """
    if scores.detections is None or scores.expression is None or not scores.has_descriptions:
        return None
    sample, score, hits = scores.detections.by_box()
    names, description = np.unique(scores.expression, return_inverse=True)
    num_true = np.bincount(description, weights=scores.num_targets, minlength=len(names))
    if len(np.unique(score)) < 2 or not num_true.any():
        return None
    order = np.lexsort((-score, description[sample]))
    bounds = np.searchsorted(description[sample][order], np.arange(len(names) + 1))
    is_right = (hits[order, None].astype(np.int64) >> np.arange(len(TEN_THRESHOLDS))) & 1
    found = [_average_precision(is_right[bounds[at] : bounds[at + 1]], num_true[at]) for at in np.flatnonzero(num_true)]
    return float(np.mean(found))


def _average_precision(is_right: np.ndarray, num_true: float) -> float:
    """Mean over thresholds and recalls of the interpolated precision; rows are boxes, the best score first."""
    num_right = np.cumsum(is_right, axis=0)
    precision = num_right / np.arange(1, len(is_right) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    total = 0.0
    for at in range(is_right.shape[1]):
        places = np.searchsorted(num_right[:, at] / num_true, RECALLS, side="left")
        total += float(precision[places[places < len(is_right)], at].sum())
    return total / (len(TEN_THRESHOLDS) * len(RECALLS))
