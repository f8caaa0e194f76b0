"""The existence output, for heads whose papers have none: does the expression refer to anything?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

LEAST_WEIGHT = 1e-6
"""Keeps the mean finite where the mask is empty everywhere."""


class ExistenceOutput(nn.Module):
    """LayerNorm and one linear layer on [vector of <s>; mean of the patches weighted by the predicted mask].

    The mask is detached, so the existence loss does not train it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.read_out = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 1))

    def forward(
        self,
        text_class: Float[Tensor, "batch dim"],
        patches: Float[Tensor, "batch patches dim"],
        grid: tuple[int, int],
        mask_logits: Float[Tensor, "batch mask_rows mask_columns"],
    ) -> Float[Tensor, " batch"]:
        """Existence logits; `patches` are row-major over `grid`."""
        coverage = F.adaptive_avg_pool2d(mask_logits.detach().float().sigmoid(), grid).flatten(1)
        weights = coverage / coverage.sum(-1, keepdim=True).clamp(min=LEAST_WEIGHT)
        pooled = (weights.to(patches.dtype).unsqueeze(1) @ patches).squeeze(1)
        logits: Tensor = self.read_out(torch.cat([text_class, pooled.to(text_class.dtype)], -1))
        return logits.squeeze(-1).float()


def existence_bce(logits: Float[Tensor, " batch"], exists: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits.float(), exists.float())
