"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, equation 3), by grid sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int, int]
"""(rows, columns) of a map."""


class Places(NamedTuple):
    """Where the tokens of several maps lie, row-major, one map after the other."""

    sizes: Sequence[Size]
    sides_xy: Float[Tensor, "levels 2"]
    """(columns, rows) of the maps."""
    centres_xy: Float[Tensor, "tokens 2"]
    """The middle of every place, in fractions of the frame."""


def places_of(sizes: Sequence[Size], *, device: torch.device) -> Places:
    """The places of maps of these sizes; computed once for all layers, since it synchronises with the device."""
    centres = []
    for rows, columns in sizes:
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        centres.append(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1))
    sides = torch.tensor([(columns, rows) for rows, columns in sizes], device=device, dtype=torch.float32)
    return Places(sizes, sides, torch.cat(centres))


class DeformableAttention(nn.Module):
    """Every token samples a few points of every level, at learned offsets from its own place.

    Args:
        dim: width of the tokens.
        heads: of `dim / heads` channels.
        num_levels: maps of different resolution.
        num_points: points sampled per head and level.
    """

    def __init__(self, dim: int, *, heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.heads, self.num_levels, self.num_points = heads, num_levels, num_points
        self.offsets = nn.Linear(dim, heads * num_levels * num_points * 2)
        self.weights = nn.Linear(dim, heads * num_levels * num_points)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, *, even: bool = True) -> None:
        """Start as a star: point i of head h lies i + 1 places away at the angle 2 pi h / heads.

        Args:
            even: all points weigh the same at first, as published; else the weights depend on the query.
        """
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.bias)
        nn.init.zeros_(self.weights.weight) if even else nn.init.xavier_uniform_(self.weights.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        star = (rays[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        self.offsets.bias.copy_(star.flatten())
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch tokens dim"],
        tokens: Float[Tensor, "batch tokens dim"],
        places: Places,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend; `tokens` are those of `places`. Sampling is done in float32."""
        batch, num_tokens, _ = tokens.shape
        values = self.value(tokens).view(batch, num_tokens, self.heads, -1)
        offsets = self.offsets(queries).view(batch, num_tokens, self.heads, self.num_levels, self.num_points, 2)
        weights = self.weights(queries).view(batch, num_tokens, self.heads, -1).float().softmax(-1)
        # Autocast keeps this in float32, since it has no matrix product.
        points = places.centres_xy[:, None, None, None] + offsets.float() / places.sides_xy[:, None]
        sampled = sample_levels(values.float(), places.sizes, points, weights.view(offsets.shape[:-1]))
        attended: Tensor = self.out(sampled.to(values.dtype))
        return attended


def sample_levels(
    values: Float[Tensor, "batch tokens heads channels"],
    sizes: Sequence[Size],
    points_xy: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries dim"]:
    """Weighted sum of the values at the points: bilinear between the centres of places, zero outside the map.

    Args:
        values: the maps of the levels, row-major, one after the other.
        sizes: of the maps.
        points_xy: fractions of the frame; (0, 0) is its top left corner.
        weights: of the points.
    """
    batch, _, heads, channels = values.shape
    levels = torch.split(values, [rows * columns for rows, columns in sizes], 1)
    total = values.new_zeros(batch * heads, channels, points_xy.shape[1])
    for level, (rows, columns) in enumerate(sizes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, rows, columns)
        points = points_xy[:, :, :, level].transpose(1, 2).flatten(0, 1)
        if values.device.type == "mps" and torch.is_grad_enabled():
            found = read_bilinear(maps, points)
        else:
            found = F.grid_sample(maps, 2 * points - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + (found * weight[:, None]).sum(-1)
    return total.view(batch, heads, channels, -1).permute(0, 3, 1, 2).flatten(2)


def read_bilinear(
    maps: Float[Tensor, "maps channels rows columns"], points_xy: Float[Tensor, "maps queries points 2"]
) -> Float[Tensor, "maps channels queries points"]:
    """The values at the points (fractions of the frame): `grid_sample` by gathers.

    For mps, where `grid_sample` has no gradient in older releases of torch (pytorch pull request 179756, April 2026).
    """
    rows, columns = maps.shape[2:]
    x, y = points_xy[..., 0] * columns - 0.5, points_xy[..., 1] * rows - 0.5
    left, top = x.floor(), y.floor()
    flat, total = maps.flatten(2), maps.new_zeros(())
    for row, by_row in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, by_column in ((left, 1 - (x - left)), (left + 1, x - left)):
            is_inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            index = (row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)).long().flatten(1)
            found = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).view(*flat.shape[:2], *x.shape[1:])
            total = total + found * (by_row * by_column * is_inside)[:, None]
    return total
