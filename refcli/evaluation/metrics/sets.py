"""Metrics of sets: every answered box (or mask) against every true one."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.box_matches import TEN_THRESHOLDS
from refcli.evaluation.metrics.no_target import mcc
from refcli.evaluation.metrics.ratios import Ratio, share
from refcli.evaluation.sample_columns import ScoreColumns


def set_ratios(scores: ScoreColumns) -> dict[str, Ratio]:
    """Means over the samples WITH a target, if the split has several targets or answered boxes; the boxes of GREC.

    After "no target", and with no box of enough score, all are 0. With n true and m answered boxes, of which k match:

    - `set_recall50`, `set_precision50`: k / n and k / m at IoU 0.5, matched in the order of the true boxes; without
      `50`, the mean over IoU 0.50, 0.55, ..., 0.95 (HumanRef, RexSeek 2025). Its rejection score is `grec_n_acc`.
    - `density_f1_50`, `density_f1`: F1 times min(1, n / m), as the published code computes it; its README divides by
      the number of people in the image.
    - `set_f1_50`: 2 k / (n + m) at IoU 0.5 of the assignment with the largest sum of IoUs (OpenRef 2026); `set_f1`:
      its mean over the ten thresholds; `set_f1_mask`: the same of masks (PBench, Falcon Perception 2026).
    """
    in_order50, in_order, best50 = scores.matched_in_order50, scores.matched_in_order, scores.matched_best50
    best, masks = scores.matched_best, scores.matched_masks
    if not scores.has_sets or in_order50 is None or in_order is None or best50 is None or best is None or masks is None:
        return {}
    among, truth, kept = scores.has_target, scores.num_targets, scores.kept
    some_kept = np.maximum(kept, 1)
    f1_of_match = 2 / np.maximum(truth + kept, 1)
    penalty = np.minimum(1.0, truth / some_kept)
    mean, mean_best, mean_masks = (matches / len(TEN_THRESHOLDS) for matches in (in_order, best, masks))
    return {
        "set_recall50": share(in_order50 / np.maximum(truth, 1), among),
        "set_precision50": share(in_order50 / some_kept, among),
        "set_recall": share(mean / np.maximum(truth, 1), among),
        "set_precision": share(mean / some_kept, among),
        "density_f1_50": share(in_order50 * f1_of_match * penalty, among),
        "density_f1": share(mean * f1_of_match * penalty, among),
        "set_f1_50": share(best50 * f1_of_match, among),
        "set_f1": share(mean_best * f1_of_match, among),
        "set_f1_mask": share(mean_masks * f1_of_match, among & scores.mask_is_known),
    }


def positive_micro_f1(scores: ScoreColumns) -> dict[str, Ratio]:
    """`pmf1_box`, `pmf1_mask`: 2 TP / (2 TP + FP + FN) over the samples WITH a target, mean of ten IoU thresholds.

    The positive micro F1 of SA-Co (SAM 3, 2025), whose figures are of masks; targets with enough score count.
    SA-Co's threshold is 0.5: give --score-threshold 0.5.
    """
    if not scores.has_sets:
        return {}
    pairs = (
        ("pmf1_box", scores.matched_best, scores.has_target),
        ("pmf1_mask", scores.matched_masks, scores.has_target & scores.mask_is_known),
    )
    sizes = (scores.num_targets + scores.kept) * len(TEN_THRESHOLDS)
    return {
        name: Ratio(np.where(among, 2 * matched, 0), np.where(among, sizes, 0))
        for name, matched, among in pairs
        if matched is not None
    }


def cg_f1(scores: ScoreColumns, pmf1: dict[str, float]) -> dict[str, float]:
    """`cgf1_box`, `cgf1_mask`: the positive micro F1 times the MCC of "any box has enough score" (SA-Co's cgF1)."""
    factor = mcc(scores.kept > 0, scores.has_target)
    return {} if factor is None else {name.replace("pmf1", "cgf1"): value * factor for name, value in pmf1.items()}
