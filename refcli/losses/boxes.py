"""Box regression losses: L1 and generalised IoU."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from refcli.geometry.box_tensors import cxcywh_to_xyxy, giou_pairs
from refcli.losses.averages import mean_over


def box_l1(
    predicted_cxcywh: Float[Tensor, "batch 4"], true_cxcywh: Float[Tensor, "batch 4"], exists: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Sum of the four absolute differences (fractions of the frame), mean over the samples that have a box."""
    return mean_over((predicted_cxcywh - true_cxcywh).abs().sum(-1), exists)


def box_giou(
    predicted_cxcywh: Float[Tensor, "batch 4"], true_cxcywh: Float[Tensor, "batch 4"], exists: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """1 - GIoU (Rezatofighi et al. 2019), mean over the samples that have a box."""
    giou = giou_pairs(cxcywh_to_xyxy(predicted_cxcywh), cxcywh_to_xyxy(true_cxcywh))
    return mean_over(1 - giou, exists)
