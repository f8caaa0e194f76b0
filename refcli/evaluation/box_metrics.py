"""Box metrics of referring expression comprehension (REC)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.scores import Scores
from refcli.evaluation.terms import Terms, share

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def box_terms(scores: Scores) -> dict[str, Terms]:
    """Accuracies and mean IoU over the samples WITH a target.

    The predicted box is compared with the box that encloses all referents, in pixels of the original image.

    - `acc50` ... `acc90`: share with IoU >= 0.5 ... 0.9. The classical metric of RefCOCO: the box counts whatever the
      model's existence gate says.
    - `acc50_gated`: the same, but a wrong "no target" is a miss: what a user sees.
    - `box_miou`: mean IoU of the box before the gate.
    """
    among = scores.has_target
    iou = np.nan_to_num(scores.box_iou)
    terms = {f"acc{round(threshold * 100)}": share(iou >= threshold, among) for threshold in THRESHOLDS}
    terms["acc50_gated"] = share((iou >= THRESHOLDS[0]) & ~scores.says_none, among)
    terms["box_miou"] = share(iou, among)
    return terms
