"""The boxes of one answer against the true boxes, one by one: the matchings of the field's evaluators."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

MATCH_OVERLAP = 0.5
"""A box is found if its IoU (GIoU) is at least this (every paper of the field)."""
TEN_THRESHOLDS = np.arange(50, 100, 5) / 100
"""IoU 0.50, 0.55, ..., 0.95 (COCO)."""
_BITS = 1 << np.arange(len(TEN_THRESHOLDS))


class Matches(NamedTuple):
    """The number of boxes that are matched one to one with true boxes."""

    at_half: int
    """At IoU 0.5."""
    at_ten: int
    """The sum of the matches at each of `TEN_THRESHOLDS`."""


NO_MATCHES = Matches(0, 0)


def greedy_matches(overlaps: Float[np.ndarray, "found truth"]) -> int:
    """The number of pairs that are matched by taking the largest overlap of at least 0.5 repeatedly.

    The published GREC evaluator (gRefCOCO) matches this way. A maximum matching can find more pairs in a crowd.
    """
    left = overlaps.copy()
    num_pairs = 0
    while left.size and left.max() >= MATCH_OVERLAP:
        found, truth = np.unravel_index(left.argmax(), left.shape)
        left[found, :] = left[:, truth] = -np.inf
        num_pairs += 1
    return num_pairs


def matches_in_order(ious: Float[np.ndarray, "found truth"]) -> Matches:
    """Each true box, in its order, takes the box of the largest sufficient IoU that is left.

    The published evaluator of HumanRef (RexSeek, 2025) matches this way, at each threshold anew.
    """
    taken = _taken_in_order(ious.T)
    return Matches(int(taken[:, 0].sum()), int(taken.sum()))


def best_matches(ious: Float[np.ndarray, "found truth"]) -> Matches:
    """The pairs of the assignment with the largest sum of IoUs (Hungarian) that have a sufficient IoU.

    The published evaluators of OpenRef (2026) and SA-Co (SAM 3, 2025) match this way: one assignment for all
    thresholds, although another one may have more pairs at some of them.
    """
    if not ious.size or ious.max() < MATCH_OVERLAP:
        return NO_MATCHES
    pairs = ious.max(keepdims=True).ravel() if 1 in ious.shape else ious[linear_sum_assignment(ious, maximize=True)]
    reached = np.searchsorted(TEN_THRESHOLDS, pairs, side="right")
    return Matches(int((reached > 0).sum()), int(reached.sum()))


def hits_by_rank(ious_by_rank: Float[np.ndarray, "found truth"]) -> tuple[int, ...]:
    """For each box, the best score first, the thresholds at which COCO counts it as right.

    Each box takes the true box of the largest sufficient IoU that is left, at each threshold anew; of equal ones the
    last (pycocotools' COCOeval, without crowds and sizes).

    Returns:
        Bit n of each number stands for `TEN_THRESHOLDS[n]`.
    """
    taken = _taken_in_order(ious_by_rank[:, ::-1])
    return tuple((taken @ _BITS).tolist())


def first_hit(ious_by_rank: Float[np.ndarray, "found truth"]) -> int:
    """The rank (from 1) of the first box with an IoU of at least 0.5 with any true box; 0 if there is none."""
    hits = np.flatnonzero((ious_by_rank >= MATCH_OVERLAP).any(axis=1))
    return int(hits[0]) + 1 if len(hits) else 0


def _taken_in_order(ious: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows thresholds"]:
    """Whether each row, in its order, gets a column: the best that is left, of equal ones the first."""
    if len(ious) == 1 and ious.size:
        only: np.ndarray = ious.max() >= TEN_THRESHOLDS
        return only[None]
    taken = np.zeros((len(ious), len(TEN_THRESHOLDS)), dtype=np.bool_)
    if not ious.size:
        return taken
    is_left = np.ones((len(TEN_THRESHOLDS), ious.shape[1]), dtype=np.bool_)
    for row in np.flatnonzero(ious.max(axis=1) >= MATCH_OVERLAP):
        candidates = np.where(is_left, ious[row], 0.0)
        best = candidates.argmax(axis=1)
        gets = candidates[np.arange(len(best)), best] >= TEN_THRESHOLDS
        is_left[gets, best[gets]] = False
        taken[row] = gets
    return taken
