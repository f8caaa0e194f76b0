"""Two-dimensional sine positions, as DETR's family of decoders has them (Carion et al. 2020, Parmar et al. 2018)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 10000.0
EPS = 1e-6


def sine_positions(size: tuple[int, int], dim: int, *, like: Tensor) -> Float[Tensor, "places dim"]:
    """Row-major positions: the first half of the channels tells y, the second x; sine and cosine alternate.

    Args:
        size: (rows, columns); the last row and the last column are at 2 pi, the first are one step from 0.
        dim: a multiple of 4.
        like: gives device and dtype.
    """
    half = dim // 2
    wavelengths = TEMPERATURE ** (torch.arange(0, half, 2, device=like.device) / half)

    def waves(steps: int) -> Float[Tensor, "steps half"]:
        places = torch.arange(1, steps + 1, device=like.device) * (2 * math.pi / (steps + EPS))
        angles = places[:, None] / wavelengths
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    rows, columns = size
    y, x = waves(rows).repeat_interleave(columns, 0), waves(columns).repeat(rows, 1)
    return torch.cat([y, x], -1).to(like.dtype)
