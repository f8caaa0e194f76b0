"""A learnable scale and bias between a cosine and its logit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Calibration(nn.Module):
    """logit = scale * cosine + bias; with no start value it is the identity and has no parameters."""

    def __init__(self, initial_scale: float | None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale))) if initial_scale is not None else None
        self.bias = nn.Parameter(torch.zeros(())) if initial_scale is not None else None

    def forward(self, cosine: Tensor) -> Tensor:
        """Turn cosines into logits of the same shape."""
        if self.log_scale is None or self.bias is None:
            return cosine
        return cosine * self.log_scale.exp() + self.bias
