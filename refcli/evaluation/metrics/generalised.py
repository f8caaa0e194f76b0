"""Metrics of generalised referring segmentation (GRES): several targets or none."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.metrics.conventions import Convention
from refcli.evaluation.metrics.terms import Terms, share
from refcli.evaluation.score_table import ScoreColumns


def says_none(scores: ScoreColumns, convention: Convention) -> np.ndarray:
    """Whether each answer is "no target": as the system says, or by the convention's rule for one that does not."""
    counts = scores.overlaps[convention.frame]
    drawn = counts.intersection + counts.union - counts.truth
    is_small = scores.mask_is_known & ~scores.knows_existence & (drawn < convention.none_below_pixels)
    none: np.ndarray = scores.says_none | is_small
    return none


def generalised_terms(scores: ScoreColumns, convention: Convention) -> dict[str, Terms]:
    """No-target accuracies, and IoUs that include samples without a target (Liu et al., GRES, CVPR 2023).

    - `n_acc`: share of the samples WITHOUT a target that are answered "no target".
    - `t_acc`: share of the samples WITH a target that are not answered "no target".
    - `giou`: mean over all samples of the gated IoU: a right "no target" is 1, a wrong one and a missed one are 0.
    - `ciou`: sum of intersections / sum of unions, as the published GRES evaluator (ReLA) counts: a right "no target"
      adds nothing, a missed one adds the area of the false mask to the unions, a wrong "no target" adds the union of
      truth and discarded mask and no intersection (`Convention.wrong_none` has the other ways). 1 where the unions are
      all empty: nothing is meant, and nothing is answered.

    `giou` and `ciou` are over samples whose masks are known. An accuracy over no sample is left out (the published code
    says 0).
    """
    known, meant, none = scores.mask_is_known, scores.has_target, says_none(scores, convention)
    counts = scores.overlaps[convention.frame]
    iou = convention.mask_iou(counts.intersection, counts.union)
    is_scored = meant if convention.wrong_none == "kept" else meant & ~none
    union_of_wrong_none = counts.truth if convention.wrong_none == "truth" else counts.union
    union = np.where(meant & none, union_of_wrong_none, np.where(none, 0, counts.union))
    return {
        "n_acc": share(none, ~meant),
        "t_acc": share(~none, meant),
        "giou": share(np.where(meant, np.where(is_scored, iou, 0.0), none), known),
        "ciou": Terms(
            np.where(known & is_scored, counts.intersection, 0),
            np.where(known, union, 0),
            where_empty=1.0 if known.any() else None,
        ),
    }
