"""Small parts of several heads: a read-out MLP, calibrated logits, bilinear upsampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NUM_DOUBLINGS = 2
"""Of the mask features of Shared-RIS, which end at 4 times the grid, and of CGFormer, which end at 16 times."""


class ThreeLayerMLP(nn.Sequential):
    """Three linear layers with ReLU between: DETR's box regressor, with any number of outputs."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, num_outputs))


class Calibration(nn.Module):
    """logit = scale * similarity + bias, both learned; without an initial scale, the identity (no parameters)."""

    def __init__(self, initial_scale: float | None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale))) if initial_scale is not None else None
        self.bias = nn.Parameter(torch.zeros(())) if initial_scale is not None else None

    def forward(self, similarity: Tensor) -> Tensor:
        """Similarities (cosines or products) -> logits of the same shape."""
        if self.log_scale is None or self.bias is None:
            return similarity
        return similarity * self.log_scale.exp() + self.bias


class DoubleAndConvolve(nn.Module):
    """Bilinear x2, 3x3 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, maps: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch dim rows2 columns2"]:
        """Double the height and the width."""
        size = (2 * maps.shape[2], 2 * maps.shape[3])
        larger = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return F.relu(self.norm(self.convolution(larger)))


class BilinearUpsampler(nn.Sequential):
    """Doubles the resolution `doublings` times, then a 1x1 convolution (CRIS, CGFormer, Shared-RIS)."""

    def __init__(self, dim: int, *, doublings: int) -> None:
        super().__init__(*(DoubleAndConvolve(dim) for _ in range(doublings)), nn.Conv2d(dim, dim, 1))
