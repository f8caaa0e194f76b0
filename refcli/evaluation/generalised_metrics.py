"""Metrics of generalised referring segmentation (GRES): several targets or none."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.mask_metrics import mask_iou
from refcli.evaluation.scores import Scores
from refcli.evaluation.terms import Terms, share


def generalised_terms(scores: Scores) -> dict[str, Terms]:
    """No-target accuracies, and IoUs that include samples without a target.

    - `n_acc`: share of the samples WITHOUT a target that are answered "no target".
    - `t_acc`: share of the samples WITH a target that are not answered "no target".
    - `giou`: mean over all samples of the gated IoU: a right "no target" is 1, a wrong one and a missed one are 0.
    - `ciou`: sum of intersections / sum of unions, as the published GRES evaluator (ReLA) counts: a right "no target"
      adds nothing, a missed one adds the area of the false mask to the unions, a wrong "no target" adds the union of
      truth and discarded mask and no intersection.

    `giou` and `ciou` are over samples whose masks are known.
    """
    known = scores.mask_is_known
    is_right_none = ~scores.has_target & scores.says_none
    counts = scores.has_target & ~scores.says_none
    iou = np.where(counts, mask_iou(scores.mask_intersection, scores.mask_union), is_right_none)
    return {
        "n_acc": share(scores.says_none, ~scores.has_target),
        "t_acc": share(~scores.says_none, scores.has_target),
        "giou": share(iou, known),
        "ciou": Terms(
            np.where(known & counts, scores.mask_intersection, 0),
            np.where(known & ~is_right_none, scores.mask_union, 0),
        ),
    }
