"""Cross-entropy and dice of one mask per expression, at the image's resolution or at the prediction's."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refcli.contracts.batch import Targets
from refcli.losses.averages import mean_over
from refcli.losses.masks import dice

LossSize = Literal["image", "prediction"]
"""`image`: the logits are enlarged bilinearly to the model frame. `prediction`: the truth is reduced, by nearest."""


def mask_bce_and_dice(
    mask_logits: Float[Tensor, "batch mask_rows mask_columns"], targets: Targets, *, size: LossSize
) -> dict[str, Float[Tensor, ""]]:
    """`mask_bce` and `mask_dice`, unweighted; means over the samples that have a mask.

    A sample without a referent has an empty mask: it counts for the cross-entropy, and for dice (whose value on an
    empty truth says nothing about how wrong a prediction is) it does not.
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
