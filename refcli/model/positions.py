"""Position tables: the BEiT-3 layout, its resampling to other grids, and sine positions for small towers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refcli.config.schema import NUM_UNUSED_ROWS as NUM_UNUSED_ROWS

NUM_EXTRA_ROWS = NUM_UNUSED_ROWS + 1
"""Rows of a vision table before its first patch: the two unused ones and the class token's."""


def resample_vision_positions(
    table: Float[Tensor, "rows dim"], *, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new_rows dim"]:
    """Resample the patch rows of a vision position table to another grid.

    The first three rows stay; the others, row-major over the grid, are interpolated bicubically in float32 by target
    size, with `align_corners=False` and without antialiasing, as the official code does from 224 to 384 pixels.
    """
    if old_grid == new_grid:
        return table
    extra, patches = table[:NUM_EXTRA_ROWS], table[NUM_EXTRA_ROWS:]
    image = patches.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([extra, image.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)])


def sine_positions_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "patches dim"]:
    """Two-dimensional sine-cosine positions, row-major: a quarter of the channels each for sin/cos of row and column.

    Wavelengths run geometrically from 4 patches to 4 times the grid's longer side.
    """
    if dim % 4:
        raise ValueError(f"2-D sine positions need a dim that is a multiple of 4, not {dim}")
    wavelengths = torch.logspace(math.log10(4), math.log10(4 * max(grid)), dim // 4)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    angles = torch.stack([rows, columns], -1).reshape(-1, 2, 1) * (2 * torch.pi / wavelengths)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
