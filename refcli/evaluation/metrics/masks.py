"""Mask metrics of referring segmentation (RES)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.metrics.boxes import THRESHOLDS
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL, Convention
from refcli.evaluation.metrics.generalised import says_none
from refcli.evaluation.metrics.terms import Terms, share
from refcli.evaluation.score_table import ScoreColumns


def mask_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU per sample from pixel counts; two empty masks agree: 1."""
    return CONVENTIONS[ORIGINAL].mask_iou(intersection, union)


def mask_terms(scores: ScoreColumns, convention: Convention) -> dict[str, Terms]:
    """IoU figures over the samples WITH a target whose masks are known.

    The union of the answer's masks is compared with the union of the referents', before the model's existence gate.

    - `mask_miou`: mean of the IoU per sample (called IoU in CRIS and ETRIS).
    - `mask_oiou`: sum of intersections / sum of unions (called cIoU in ReLA); large referents weigh more.
    - `pr50` ... `pr90`: share with mask IoU >= 0.5 ... 0.9 (> in some conventions).

    An answer without a mask, of a system that draws masks, is an empty mask.
    """
    among = scores.has_target & scores.mask_is_known
    counts = scores.overlaps[convention.frame]
    iou = convention.mask_iou(counts.intersection, counts.union)
    terms = {
        "mask_miou": share(iou, among),
        "mask_oiou": Terms(
            np.where(among, counts.intersection, 0),
            np.where(among, counts.union, 0),
            where_empty=convention.empty_iou if among.any() else None,
        ),
    }
    if convention.pr_is_gated:
        iou = np.where(says_none(scores, convention), 0.0, iou)
    for threshold in THRESHOLDS:
        is_hit = iou > threshold if convention.pr_is_strict else iou >= threshold
        terms[f"pr{round(threshold * 100)}"] = share(is_hit, among)
    return terms
