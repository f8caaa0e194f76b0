"""A learnable scale and bias between a similarity and its logit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Calibration(nn.Module):
    """logit = scale * similarity + bias; with no start value it is the identity and has no parameters."""

    def __init__(self, initial_scale: float | None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale))) if initial_scale is not None else None
        self.bias = nn.Parameter(torch.zeros(())) if initial_scale is not None else None

    def forward(self, similarity: Tensor) -> Tensor:
        """Turn similarities (cosines, or products) into logits of the same shape."""
        if self.log_scale is None or self.bias is None:
            return similarity
        return similarity * self.log_scale.exp() + self.bias
