"""No-target metrics of generalised referring expressions: N-acc and T-acc (Liu et al., GRES, CVPR 2023)."""

from __future__ import annotations

import numpy as np

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
