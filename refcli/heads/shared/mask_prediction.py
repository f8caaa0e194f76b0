"""The answer of a head that draws one mask per expression and no box."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from refcli.contracts.prediction import Prediction


def predict_from_mask(
    mask_logits: Float[Tensor, "batch mask_rows mask_columns"],
    existence_logits: Float[Tensor, " batch"] | None,
    *,
    mask_threshold: float,
    threshold_first: bool,
    existence_threshold: float,
) -> Prediction:
    """One target per expression, whose box is left to be taken from its mask.

    Its score is the existence probability where the head has one; otherwise the mean mask probability over what the
    mask covers, and 0 where that is nothing.

    Args:
        mask_logits: of the foreground.
        existence_logits: None for a head without that output.
        mask_threshold: a place is foreground above this probability.
        threshold_first: binarise before the mask is enlarged (the prediction then holds -1 and 1), instead of after.
        existence_threshold: below this probability of existence the answer is "no target".
    """
    logits = mask_logits.float()
    probability = logits.sigmoid()
    above = logits - math.log(mask_threshold / (1 - mask_threshold))
    is_mask = (above > 0).to(logits.dtype)
    existence = None if existence_logits is None else existence_logits.float().sigmoid()
    score = existence
    if score is None:
        score = (probability * is_mask).sum((1, 2)) / is_mask.sum((1, 2)).clamp(min=1)
    return Prediction(
        boxes_xyxy=None,
        scores=score.unsqueeze(1),
        mask_logits=(2 * is_mask - 1 if threshold_first else above).unsqueeze(1),
        existence=existence,
        existence_threshold=existence_threshold,
    )
