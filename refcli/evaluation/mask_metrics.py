"""Mask metrics of referring segmentation (RES)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.box_metrics import THRESHOLDS
from refcli.evaluation.scores import Scores
from refcli.evaluation.terms import Terms, share


def mask_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU per sample from pixel counts; two empty masks agree: 1."""
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def mask_terms(scores: Scores) -> dict[str, Terms]:
    """IoU figures over the samples WITH a target whose masks are known.

    Masks are compared at the size of the original image, before the model's existence gate.

    - `mask_miou`: mean of the IoU per sample (called IoU in CRIS and ETRIS).
    - `mask_oiou`: sum of intersections / sum of unions (called cIoU in ReLA); large referents weigh more.
    - `pr50` ... `pr90`: share with mask IoU >= 0.5 ... 0.9.
    """
    among = scores.has_target & scores.mask_is_known
    iou = mask_iou(scores.mask_intersection, scores.mask_union)
    terms = {
        "mask_miou": share(iou, among),
        "mask_oiou": Terms(np.where(among, scores.mask_intersection, 0), np.where(among, scores.mask_union, 0)),
    }
    return terms | {f"pr{round(threshold * 100)}": share(iou >= threshold, among) for threshold in THRESHOLDS}
