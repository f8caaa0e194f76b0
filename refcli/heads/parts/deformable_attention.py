"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, equation 3), by grid sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int, int]
"""(rows, columns) of a map."""


class DeformableAttention(nn.Module):
    """Every token reads a few places of every level, which it chooses itself, around its own place.

    Args:
        dim: width of the tokens.
        heads: of `dim / heads` channels.
        num_levels: maps of different resolution.
        num_points: places read per head and level.
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
        """Start as a star: head h looks along the angle 2 pi h / heads, its i-th point i + 1 places away.

        Args:
            even: all points weigh the same at first, as published; else their weights depend on the query.
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
        sizes: Sequence[Size],
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend; `tokens` are the maps of the levels, row-major, one after the other. Sampling is done in float32."""
        batch, num_tokens, _ = tokens.shape
        values = self.value(tokens).view(batch, num_tokens, self.heads, -1)
        offsets = self.offsets(queries).view(batch, num_tokens, self.heads, self.num_levels, self.num_points, 2)
        weights = self.weights(queries).view(batch, num_tokens, self.heads, -1).float().softmax(-1)
        # Autocast leaves this in float32, for nothing in it is a matrix product.
        sides = torch.tensor([(columns, rows) for rows, columns in sizes], device=tokens.device)
        points = token_centres(sizes, device=tokens.device)[:, None, None, None] + offsets.float() / sides[:, None]
        sampled = sample_levels(values.float(), sizes, points, weights.view(offsets.shape[:-1]))
        attended: Tensor = self.out(sampled.to(values.dtype))
        return attended


def sample_levels(
    values: Float[Tensor, "batch tokens heads channels"],
    sizes: Sequence[Size],
    points_xy: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries dim"]:
    """Weighted sum of what lies at the points: bilinear between the centres of places, zero outside of the map.

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
        grid = 2 * points_xy[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + (found * weight[:, None]).sum(-1)
    return total.view(batch, heads, channels, -1).permute(0, 3, 1, 2).flatten(2)


def token_centres(sizes: Sequence[Size], *, device: torch.device) -> Float[Tensor, "tokens 2"]:
    """(x, y) of the middle of every place of every level, as fractions of the frame."""
    centres = []
    for rows, columns in sizes:
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        centres.append(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1))
    return torch.cat(centres)
