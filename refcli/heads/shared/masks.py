"""Heads that draw one mask per expression and no box: their losses and their prediction."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.losses.averages import mean_over
from refcli.losses.masks import dice

LossSize = Literal["image", "prediction"]
"""`image`: the logits are resized bilinearly to the model frame. `prediction`: the truth is downsampled (nearest)."""


def mask_bce_and_dice(
    mask_logits: Float[Tensor, "batch mask_rows mask_columns"], targets: Targets, *, size: LossSize
) -> dict[str, Float[Tensor, ""]]:
    """`mask_bce` and `mask_dice`, unweighted; means over the samples that have a mask.

    A sample without a referent has an empty mask. It counts for the cross-entropy but not for dice, which is close to 1
    for any prediction then.
    """
    logits, truth = mask_logits[:, None].float(), targets.masks[:, None].float()
    if size == "image":
        logits = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear", align_corners=False)
    else:
        truth = F.interpolate(truth, size=logits.shape[-2:], mode="nearest")
    logits, truth = logits.flatten(1), truth.flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1)
    known = targets.mask_is_known
    return {
        "mask_bce": mean_over(cross_entropy, known),
        "mask_dice": mean_over(dice(logits, truth), known & targets.exists),
    }


def predict_from_mask(
    mask_logits: Float[Tensor, "batch mask_rows mask_columns"],
    existence_logits: Float[Tensor, " batch"] | None,
    *,
    mask_threshold: float,
    threshold_first: bool,
    existence_threshold: float,
) -> Prediction:
    """One target per expression, without a box, which is derived from the mask later.

    Its score is the existence probability where the head has one; otherwise the mean mask probability inside the mask,
    or 0 where the mask is empty.

    Args:
        mask_logits: of the foreground.
        existence_logits: None for a head without that output.
        mask_threshold: a place is foreground above this probability.
        threshold_first: binarise before the mask is resized (the prediction then holds -1 and 1) instead of after.
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
