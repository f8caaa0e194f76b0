"""Learned upsampling: by stride-2 transposed convolutions, or by bilinear doubling and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NUM_DOUBLINGS = 2
"""Of the maps of Shared-RIS, which end at four times the grid, and of CGFormer's, which end at sixteen times."""


class UpsampleBlock(nn.Module):
    """2x2 transposed convolution with stride 2 (no bias), BatchNorm and optionally ReLU, on places in any order.

    Kernel equals stride, so no two places touch each other: the convolution is one product with a (in, 2*2*out) matrix.
    At test time the BatchNorm is folded into that matrix. `weight` has nn.ConvTranspose2d's layout (in, out, 2, 2).
    """

    def __init__(self, in_dim: int, out_dim: int, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.weight = nn.Parameter(nn.ConvTranspose2d(in_dim, out_dim, 2, 2, bias=False).weight.detach().clone())
        self.norm = nn.BatchNorm1d(out_dim)

    def forward(self, x: Float[Tensor, "batch places in_dim"]) -> Float[Tensor, "batch places4 out_dim"]:
        """Put four places where one was, one after the other: top left, top right, bottom left, bottom right."""
        batch, places, in_dim = x.shape
        out_dim = self.weight.shape[1]
        kernel, bias = self.weight.permute(2, 3, 1, 0), None
        if not self.training:
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None and variance is not None
            gain = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
            kernel = kernel * gain[:, None]
            bias = (self.norm.bias - mean * gain).repeat(4)
        y = F.linear(x, kernel.reshape(4 * out_dim, in_dim), bias).view(batch, 4 * places, out_dim)
        if self.training:
            y = self.norm(y.flatten(0, 1)).view_as(y)
        return F.relu(y) if self.relu else y


class Upsampler(nn.Sequential):
    """A chain of `steps` upsampling blocks; the last has no ReLU (OneRef's mask head).

    The places come out in the order of the blocks. `to_maps` puts right what is computed of each; to move the channels
    of every map in every block would cost more than some of the products.
    """

    def __init__(self, in_dim: int, out_dim: int, *, steps: int) -> None:
        super().__init__(
            *(UpsampleBlock(in_dim if i == 0 else out_dim, out_dim, relu=i < steps - 1) for i in range(steps))
        )

    def to_maps(
        self, values: Float[Tensor, "batch places"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch map_rows map_columns"]:
        """One value of every place as maps.

        Args:
            values: in the order in which the chain puts out the places of `grid`.
            grid: (rows, columns) of what went in, row-major.
        """
        steps = len(self)
        parted = values.view(values.shape[0], *grid, *(2, 2) * steps)
        down, across = range(3, 3 + 2 * steps, 2), range(4, 4 + 2 * steps, 2)
        return parted.permute(0, 1, *down, 2, *across).reshape(values.shape[0], *(side << steps for side in grid))


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
    """`doublings` times twice the resolution, then a 1x1 convolution (CRIS, CGFormer, Shared-RIS)."""

    def __init__(self, dim: int, *, doublings: int) -> None:
        super().__init__(*(DoubleAndConvolve(dim) for _ in range(doublings)), nn.Conv2d(dim, dim, 1))
