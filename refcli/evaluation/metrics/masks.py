"""Mask metrics of referring segmentation: RES, and GRES with several targets or none."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.metrics.boxes import THRESHOLDS
from refcli.evaluation.metrics.conventions import Convention
from refcli.evaluation.metrics.no_target import says_none
from refcli.evaluation.metrics.ratios import Ratio, share
from refcli.evaluation.sample_columns import ScoreColumns


def mask_ratios(scores: ScoreColumns, convention: Convention) -> dict[str, Ratio]:
    """IoU metrics over the samples WITH a target whose masks are known.

    The union of the answered masks is compared with the union of the true ones, before the model's existence gate.

    - `mask_miou`: mean of the IoU per sample (called IoU in CRIS and ETRIS, gIoU in LISA and GSEval).
    - `mask_oiou`: sum of intersections / sum of unions (called cIoU in ReLA and LISA); large targets weigh more.
    - `pr50` ... `pr90`: share with mask IoU >= 0.5 ... 0.9 (> in some conventions).

    If the system draws masks, an answer without one counts as an empty mask. Ignored pixels are in no count (LISA adds
    1e-5 to the unions per sample of ReasonSeg).
    """
    among = scores.has_target & scores.mask_is_known
    counts = scores.overlaps[convention.frame]
    iou = convention.mask_iou(counts.intersection, counts.union)
    ratios = {
        "mask_miou": share(iou, among),
        "mask_oiou": Ratio(
            np.where(among, counts.intersection, 0),
            np.where(among, counts.union, 0),
            where_empty=convention.empty_iou if among.any() else None,
        ),
    }
    if convention.pr_is_gated:
        iou = np.where(says_none(scores, convention), 0.0, iou)
    for threshold in THRESHOLDS:
        is_hit = iou > threshold if convention.pr_is_strict else iou >= threshold
        ratios[f"pr{round(threshold * 100)}"] = share(is_hit, among)
    return ratios


def generalised_mask_ratios(scores: ScoreColumns, convention: Convention) -> dict[str, Ratio]:
    """IoUs that include samples without a target (Liu et al., GRES, CVPR 2023), over samples whose masks are known.

    - `giou`: mean over all samples of the gated IoU: a right "no target" is 1, a wrong one and a missed one are 0.
    - `ciou`: sum of intersections / sum of unions, as the published GRES evaluator (ReLA) counts: a right "no target"
      adds nothing, a missed one adds the area of the false mask to the unions, a wrong "no target" adds the union of
      truth and discarded mask and no intersection (`Convention.wrong_none` has the other ways). 1 where all unions are
      empty: there is no target, and none is answered.
    """
    known, has_target, none = scores.mask_is_known, scores.has_target, says_none(scores, convention)
    counts = scores.overlaps[convention.frame]
    iou = convention.mask_iou(counts.intersection, counts.union)
    is_scored = has_target if convention.wrong_none == "kept" else has_target & ~none
    union_of_wrong_none = counts.truth if convention.wrong_none == "truth" else counts.union
    union = np.where(has_target & none, union_of_wrong_none, np.where(none, 0, counts.union))
    return {
        "giou": share(np.where(has_target, np.where(is_scored, iou, 0.0), none), known),
        "ciou": Ratio(
            np.where(known & is_scored, counts.intersection, 0),
            np.where(known, union, 0),
            where_empty=1.0 if known.any() else None,
        ),
    }
