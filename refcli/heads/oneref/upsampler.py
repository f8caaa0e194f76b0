"""Learned upsampling by stride-2 transposed convolutions (OneRef's mask head)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class UpsampleBlock(nn.Module):
    """2x2 transposed convolution with stride 2 (no bias), BatchNorm and optionally ReLU, on places in any order.

    Kernel equals stride, so outputs do not overlap: the convolution is one product with a (in, 2*2*out) matrix.
    At test time the BatchNorm is folded into that matrix. `weight` has nn.ConvTranspose2d's layout (in, out, 2, 2).
    """

    def __init__(self, in_dim: int, out_dim: int, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.weight = nn.Parameter(nn.ConvTranspose2d(in_dim, out_dim, 2, 2, bias=False).weight.detach().clone())
        self.norm = nn.BatchNorm1d(out_dim)

    def forward(self, x: Float[Tensor, "batch places in_dim"]) -> Float[Tensor, "batch places4 out_dim"]:
        """Four places for each one, in a row: top left, top right, bottom left, bottom right."""
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

    The places come out in the order of the blocks, and `to_maps` sorts what is computed from each into a map. Moving
    the channels of every map in every block would cost more than some of the products.
    """

    def __init__(self, in_dim: int, out_dim: int, *, steps: int) -> None:
        super().__init__(
            *(UpsampleBlock(in_dim if i == 0 else out_dim, out_dim, relu=i < steps - 1) for i in range(steps))
        )

    def to_maps(
        self, values: Float[Tensor, "batch places"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch map_rows map_columns"]:
        """One value for every place, as maps.

        Args:
            values: in the order of the chain's output.
            grid: (rows, columns) of the input places, which were row-major.
        """
        steps = len(self)
        parted = values.view(values.shape[0], *grid, *(2, 2) * steps)
        down, across = range(3, 3 + 2 * steps, 2), range(4, 4 + 2 * steps, 2)
        return parted.permute(0, 1, *down, 2, *across).reshape(values.shape[0], *(side << steps for side in grid))
