"""Four maps of different resolution from the single map of a plain transformer (ViTDet, Li et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SWIN_BASE_CHANNELS = (128, 256, 512, 1024)
"""The input widths of CGFormer's and ReLA's published decoders."""
NORM_EPS = 1e-6
"""ViTDet's."""


class PyramidMaps(NamedTuple):
    """The maps, finest first; their strides in pixels are those of a 16-pixel patch."""

    stride4: Float[Tensor, "batch channels4 rows4 columns4"]
    stride8: Float[Tensor, "batch channels8 rows8 columns8"]
    stride16: Float[Tensor, "batch channels16 rows columns"]
    stride32: Float[Tensor, "batch channels32 rows32 columns32"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every place of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(
        self, maps: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Normalise; the result lies channels-last in memory."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """Four, two, one times and half the resolution of the patches.

    The layout is ours: CGFormer's input widths, and a size that gives the totals which Shared-RIS prints for "CGFormer
    on BEiT-3" (269M parameters, 955 GFLOPs; Table VI).

    Args:
        dim: width of the tower.
        channels: of the four maps, finest first.
    """

    def __init__(self, dim: int, channels: tuple[int, int, int, int] = SWIN_BASE_CHANNELS) -> None:
        super().__init__()
        self.stride4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, channels[0], 2, 2),
            ChannelNorm(channels[0]),
        )
        self.stride8 = nn.Sequential(nn.ConvTranspose2d(dim, channels[1], 2, 2), ChannelNorm(channels[1]))
        self.stride16 = nn.Sequential(nn.Conv2d(dim, channels[2], 1), ChannelNorm(channels[2]))
        self.stride32 = nn.Sequential(nn.Conv2d(dim, channels[3], 1), ChannelNorm(channels[3]))

    def forward(self, patches: Float[Tensor, "batch patches dim"], grid: tuple[int, int]) -> PyramidMaps:
        """The maps of `patches`, which are row-major over `grid`; odd sides are rounded up for the coarsest map."""
        maps = patches.reshape(patches.shape[0], *grid, -1).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(maps, 2, 2, ceil_mode=True)
        return PyramidMaps(self.stride4(maps), self.stride8(maps), self.stride16(maps), self.stride32(pooled))
