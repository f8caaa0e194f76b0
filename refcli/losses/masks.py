"""Mask losses: sigmoid focal loss and dice."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
DICE_SMOOTHING = 1.0


def sigmoid_focal(
    logits: Float[Tensor, "batch pixels"], truth: Float[Tensor, "batch pixels"]
) -> Float[Tensor, " batch"]:
    """Focal loss (Lin et al. 2017, alpha .25, gamma 2), mean over each sample's pixels."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    right = probability * truth + (1 - probability) * (1 - truth)
    balance = FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)
    return (balance * (1 - right) ** FOCAL_GAMMA * cross_entropy).mean(-1)


def dice(logits: Float[Tensor, "batch pixels"], truth: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) for each sample, p = sigmoid(logits)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(-1)
    return 1 - (2 * overlap + DICE_SMOOTHING) / (probability.sum(-1) + truth.sum(-1) + DICE_SMOOTHING)
