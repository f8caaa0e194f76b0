"""Where to draw the line between "found" and "no target"."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from refcli.errors import DataError


def calibrate_existence(
    existence: Float[np.ndarray, " samples"], has_target: Bool[np.ndarray, " samples"], *, min_t_acc: float
) -> float:
    """The existence probability below which the answer should be "no target".

    Of all thresholds that let at least `min_t_acc` of the targeted samples through (T-acc), the one with the largest
    sum of T-acc and N-acc (the share of the others that is turned down).

    Raises:
        DataError: the samples are all of one sort.
    """
    if has_target.all() or not has_target.any():
        raise DataError(
            "a threshold needs samples with and without a target",
            where="calibration split",
            hint="take a split with no-target expressions",
        )
    there, absent = np.sort(existence[has_target]), np.sort(existence[~has_target])
    levels = np.unique(np.concatenate([[0.0, 1.0], existence]))
    candidates = (levels[:-1] + levels[1:]) / 2
    t_acc = 1 - np.searchsorted(there, candidates, side="left") / len(there)
    n_acc = np.searchsorted(absent, candidates, side="left") / len(absent)
    return float(candidates[np.argmax(np.where(t_acc >= min_t_acc, t_acc + n_acc, -1.0))])
