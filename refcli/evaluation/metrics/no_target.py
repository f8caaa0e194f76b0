"""How well existence is judged: N-acc and T-acc (Liu et al., GRES, CVPR 2023), MCC and AUROC."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

from refcli.evaluation.metrics.conventions import Convention
from refcli.evaluation.metrics.ratios import Ratio, share
from refcli.evaluation.sample_columns import ScoreColumns


def says_none(scores: ScoreColumns, convention: Convention) -> np.ndarray:
    """Whether each answer is "no target": as the system states, or by the convention's rule if it states nothing."""
    counts = scores.overlaps[convention.frame]
    drawn = counts.intersection + counts.union - counts.truth
    is_small = scores.mask_is_known & ~scores.knows_existence & (drawn < convention.none_below_pixels)
    none: np.ndarray = scores.says_none | is_small
    return none


def no_target_ratios(scores: ScoreColumns, convention: Convention) -> dict[str, Ratio]:
    """How well existence is judged; for boxes see also `grec_n_acc` and `grec_t_acc` in `metrics.boxes`.

    - `n_acc` (N-acc): share of the samples WITHOUT a target that are answered "no target".
    - `t_acc` (T-acc): share of the samples WITH a target that are not answered "no target".

    An accuracy over no sample is left out (the published code reports 0).
    """
    none = says_none(scores, convention)
    return {"n_acc": share(none, ~scores.has_target), "t_acc": share(~none, scores.has_target)}


def mcc(finds: np.ndarray, has_target: np.ndarray) -> float | None:
    """Matthews' correlation of "found" and "there is a target" (SAM 3's image-level MCC), in -1..1.

    0 where all answers are alike; None if all samples have a target, or none has one.
    """
    if has_target.all() or not has_target.any():
        return None
    right, wrong = int((finds & has_target).sum()), int((finds & ~has_target).sum())
    missed, rejected = int((~finds & has_target).sum()), int((~finds & ~has_target).sum())
    together = (right + wrong) * (right + missed) * (rejected + wrong) * (rejected + missed)
    return (right * rejected - wrong * missed) / math.sqrt(together) if together else 0.0


def auroc(scores: ScoreColumns) -> float | None:
    """Area under the ROC curve of the score of existence, samples with a target against those without (FineCops-Ref).

    The score is the system's probability that there is a target if it gives one for every sample, or else the highest
    score of a box, 0 without a box. A missing answer that counts as wrong has the worst score. None if all samples
    have a target, none has one, or the system gives neither probabilities nor different scores.
    """
    has_target, is_answered = scores.has_target, scores.is_answered
    if has_target.all() or not has_target.any():
        return None
    if not np.isnan(scores.no_target_score[is_answered]).any():
        existence = 1 - scores.no_target_score
    elif scores.best_score is not None and len(np.unique(scores.best_score[is_answered & (scores.best_score > 0)])) > 1:
        existence = scores.best_score
    else:
        return None
    existence = np.where(is_answered, existence, np.where(has_target, -np.inf, np.inf))
    num_there, num_absent = int(has_target.sum()), int((~has_target).sum())
    sum_of_ranks = float(rankdata(existence)[has_target].sum())
    return (sum_of_ranks - num_there * (num_there + 1) / 2) / (num_there * num_absent)
