"""Mask2Former's pixel decoder: deformable attention over three maps, then one step of a feature pyramid."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from refcli.heads.rela.deformable_attention import DeformableAttention, Places, places_of
from refcli.heads.shared.simple_pyramid import PyramidMaps

NUM_LEVELS = 3
"""Strides 32, 16 and 8, in this order everywhere."""
CHANNELS_PER_GROUP = 8
"""Of the GroupNorms: 32 groups at the published width of 256."""


TEMPERATURE, POSITION_EPS = 10000.0, 1e-6
"""Of the sine positions (Parmar et al. 2018; Carion et al. 2020)."""


class PixelMaps(NamedTuple):
    """The output of the pixel decoder."""

    mask_features: Float[Tensor, "batch dim rows4 columns4"]
    """At stride 4; a mask is the product of a filter and these."""
    levels: tuple[Float[Tensor, "batch dim _ _"], ...]
    """At strides 32, 16 and 8."""


class DeformableLayer(nn.Module):
    """x <- LN(x + attention(x + positions, x)); x <- LN(x + MLP(x))."""

    def __init__(self, dim: int, *, heads: int, ffn_dim: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, heads=heads, num_levels=NUM_LEVELS, num_points=num_points)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], positions: Float[Tensor, "tokens dim"], places: Places
    ) -> Float[Tensor, "batch tokens dim"]:
        """One layer over the tokens of all levels."""
        tokens = self.attention_norm(tokens + self.attention(tokens + positions, tokens, places))
        changed: Tensor = self.ffn_norm(tokens + self.ffn(tokens))
        return changed


class PixelDecoder(nn.Module):
    """ReLA's pixel decoder, which is Mask2Former's (Cheng et al. 2022).

    Args:
        channels: of the pyramid's maps, finest first.
        dim: width of everything here.
        heads: of the deformable attention.
        num_layers: of deformable attention.
        ffn_dim: hidden width of their MLPs.
        num_points: points that a head samples on a level.
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        dim: int,
        *,
        heads: int,
        num_layers: int,
        ffn_dim: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each, dim, 1), _group_norm(dim)) for each in reversed(channels[1:])
        )
        self.level_embedding = nn.Parameter(torch.randn(NUM_LEVELS, dim))
        self.layers = nn.ModuleList(
            DeformableLayer(dim, heads=heads, ffn_dim=ffn_dim, num_points=num_points) for _ in range(num_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], dim, 1, bias=False), _group_norm(dim))
        self.smooth = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), _group_norm(dim), nn.ReLU())
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, pyramid: PyramidMaps) -> PixelMaps:
        """Attend across the three coarser maps, then carry the finest of them to stride 4."""
        coarse_first = (pyramid.stride32, pyramid.stride16, pyramid.stride8)
        maps = [project(each) for project, each in zip(self.projections, coarse_first, strict=True)]
        sizes = [(each.shape[2], each.shape[3]) for each in maps]
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)
        positions = torch.cat(
            [
                sine_positions(size, tokens.shape[2], like=tokens) + self.level_embedding[level]
                for level, size in enumerate(sizes)
            ]
        )
        places = places_of(sizes, device=tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, positions, places)
        pieces = torch.split(tokens, [rows * columns for rows, columns in sizes], 1)
        levels = tuple(
            piece.transpose(1, 2).reshape(piece.shape[0], -1, *size) for piece, size in zip(pieces, sizes, strict=True)
        )
        lateral = self.lateral(pyramid.stride4)
        larger = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return PixelMaps(self.mask_features(self.smooth(lateral + larger)), levels)


def _group_norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(dim // CHANNELS_PER_GROUP, dim)


def sine_positions(size: tuple[int, int], dim: int, *, like: Tensor) -> Float[Tensor, "places dim"]:
    """Row-major positions: the first half of the channels encodes y, the second x; sine and cosine alternate.

    Args:
        size: (rows, columns); the last row and the last column are at 2 pi, the first are one step from 0.
        dim: a multiple of 4.
        like: a tensor of the wanted device and dtype.
    """
    half = dim // 2
    wavelengths = TEMPERATURE ** (torch.arange(0, half, 2, device=like.device) / half)

    def waves(steps: int) -> Float[Tensor, "steps half"]:
        places = torch.arange(1, steps + 1, device=like.device) * (2 * math.pi / (steps + POSITION_EPS))
        angles = places[:, None] / wavelengths
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    rows, columns = size
    y, x = waves(rows).repeat_interleave(columns, 0), waves(columns).repeat(rows, 1)
    return torch.cat([y, x], -1).to(like.dtype)
