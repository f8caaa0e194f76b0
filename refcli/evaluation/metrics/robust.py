"""Metrics of robust referring segmentation: sentences without a target about an object (R-RefCOCO, IEEE TIP 2024)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.mask_frames import IMAGE
from refcli.evaluation.metrics.ratios import Ratio
from refcli.evaluation.sample_columns import ScoreColumns


def robust_ratios(scores: ScoreColumns) -> dict[str, Ratio]:
    """Means over refs, that is, over objects with their sentences; see `ScoreColumns.ref`.

    - `riou` (rIoU): the intersections of the sentences with a target, divided by their unions and the areas that are
      answered to the sentences without. Over refs with a sentence that has a target; "no target" empties the mask.
    - `mrr` (mRR): the share of the sentences without a target that are answered "no target" or by an empty mask. Over
      refs with such a sentence.

    The published code counts the areas of false masks at the resolution of its model; here they are pixels of the
    image, as the others are.
    """
    is_of_ref = scores.ref >= 0
    if not is_of_ref.any():
        return {}
    counts, none, has_target = scores.overlaps[IMAGE], scores.says_none, scores.has_target
    drawn = counts.intersection + counts.union - counts.truth
    known = is_of_ref & scores.mask_is_known
    union = np.where(has_target, np.where(none, counts.truth, counts.union), np.where(none, 0, drawn))
    is_right = none | (known & (drawn == 0))
    return {
        "riou": _mean_over_refs(
            scores.ref, np.where(has_target & ~none, counts.intersection, 0), union, known, of=has_target
        ),
        "mrr": _mean_over_refs(scores.ref, is_right, np.ones(len(scores)), is_of_ref & ~has_target, of=~has_target),
    }


def _mean_over_refs(
    ref: np.ndarray, above: np.ndarray, below: np.ndarray, among: np.ndarray, *, of: np.ndarray
) -> Ratio:
    """The mean over refs of the ratio of their sums, placed at the first sentence of each: all are about one image.

    Args:
        ref: of each sentence.
        above: its contribution to the numerator of its ref.
        below: its contribution to the denominator.
        among: the sentences that contribute.
        of: sentences of which a ref must have one.
    """
    names, place, number = np.unique(ref, return_index=True, return_inverse=True)
    sums = [np.bincount(number, weights=np.where(among, part, 0), minlength=len(names)) for part in (above, below)]
    counts = np.bincount(number, weights=among & of, minlength=len(names)) > 0
    numerators, denominators = np.zeros(len(ref)), np.zeros(len(ref))
    numerators[place] = np.where(counts & (sums[1] > 0), sums[0] / np.maximum(sums[1], 1), 0.0)
    denominators[place] = counts
    return Ratio(numerators, denominators)
