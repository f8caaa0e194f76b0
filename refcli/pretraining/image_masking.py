"""Referring-aware dynamic image masking: choose the patches to hide (OneRef section 3.2, Algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refcli.config.pretraining import ImageMaskingSettings
from refcli.geometry.box_tensors import cxcywh_to_xyxy
from refcli.pretraining.draws import SampleDraws

PATCH_STREAM, BLOCK_STREAM = 1, 2
"""Streams of random numbers; text_masking has the next ones."""
BLOCK_ROUNDS = 12
"""Blocks that `block` draws. They cover 93 % of the masked patches in a rectangle of 24 x 24 patches, 98 % in one of
5 x 5, almost all in smaller ones; the rest are single patches, as are the last blocks of the algorithm."""
_AGE_SHIFT = 58
"""Bits below a patch's age in its rank, enough for `BLOCK_ROUNDS` ages above it."""


class PatchRectangle(NamedTuple):
    """Patches x0 <= column < x1 and y0 <= row < y1; empty where there is no referent."""

    x0: Int[Tensor, " batch"]
    y0: Int[Tensor, " batch"]
    x1: Int[Tensor, " batch"]
    y1: Int[Tensor, " batch"]


def referred_rectangle(
    boxes_cxcywh: Float[Tensor, "batch 4"], exists: Bool[Tensor, " batch"], grid: tuple[int, int], *, margin: int
) -> PatchRectangle:
    """The patches of the referred box: its corners truncated to whole patches, widened, clipped to the grid.

    Args:
        boxes_cxcywh: divided by the frame's width and height.
        exists: samples with a referent; the others get an empty rectangle.
        grid: (rows, columns).
        margin: patches added on every side.

    A referred rectangle has at least one patch.
    """
    rows, columns = grid
    sides = boxes_cxcywh.new_tensor([columns, rows, columns, rows])
    x0, y0, x1, y1 = cxcywh_to_xyxy(boxes_cxcywh * sides).long().unbind(-1)
    x0, y0 = (x0 - margin).clamp(0, columns - 1), (y0 - margin).clamp(0, rows - 1)
    x1, y1 = (x1 + margin).clamp(max=columns).maximum(x0 + 1), (y1 + margin).clamp(max=rows).maximum(y0 + 1)
    return PatchRectangle(*(edge * exists for edge in (x0, y0, x1, y1)))


def mask_patches(
    boxes_cxcywh: Float[Tensor, "batch 4"],
    exists: Bool[Tensor, " batch"],
    grid: tuple[int, int],
    settings: ImageMaskingSettings,
    draws: SampleDraws,
) -> Bool[Tensor, "batch patches"]:
    """True at the masked patches, row by row.

    First, n - int(n (1 - beta)) of all n patches are masked at random. Then the mask inside the referred rectangle of l
    patches is drawn again: exactly l - int(l (1 - gamma)) patches, with every method. `uniform` draws single patches,
    as the official code does. `vanilla`, and samples without a referent, keep the first step.

    `block` is the paper's Algorithm 1: blocks of random size s in 1..(patches still missing) and aspect h/w in a..1/a
    (logarithmically uniform, as in BEiT) at random places of the rectangle. It ends after `BLOCK_ROUNDS` blocks; single
    patches at random make up what is then missing. Where rounding makes the last block too large, a random part of it
    is used, so that the number is exact.

    Args:
        boxes_cxcywh, exists, grid: see `referred_rectangle`.
        settings: method, ratios and margin.
        draws: the random numbers, on the device of the boxes; equal draws give equal masks.
    """
    rows, columns = grid
    num_patches = rows * columns
    order = draws.integers(num_patches, stream=PATCH_STREAM)
    num_context = num_patches - int(num_patches * (1 - settings.context_ratio))
    context = order.topk(num_context, largest=False, sorted=False).indices
    masked = torch.zeros_like(order, dtype=torch.bool).scatter_(1, context, True)
    if settings.method == "vanilla":
        return masked
    rectangle = referred_rectangle(boxes_cxcywh, exists, grid, margin=settings.margin)
    inside = _patches_between(rectangle, grid).flatten(1)
    num_inside = inside.sum(1)
    num_wanted = num_inside - (num_inside.double() * (1 - settings.region_ratio)).long()
    if settings.method == "block":
        blocks = draws.uniforms(4 * BLOCK_ROUNDS, stream=BLOCK_STREAM)
        age = block_age(rectangle, grid, num_wanted, blocks, min_aspect=settings.min_aspect).flatten(1)
        order = (order >> (63 - _AGE_SHIFT)) + ((BLOCK_ROUNDS - age) << _AGE_SHIFT)
    order = order.masked_fill(~inside, torch.iinfo(order.dtype).max).argsort(1)
    first = torch.arange(num_patches, device=order.device) < num_wanted.unsqueeze(1)
    return torch.where(inside, torch.zeros_like(inside).scatter_(1, order, first), masked)


def _patches_between(rectangle: PatchRectangle, grid: tuple[int, int]) -> Bool[Tensor, "batch rows columns"]:
    """True at the patches of each sample's rectangle."""
    x0, y0, x1, y1 = (edge.unsqueeze(1) for edge in rectangle)
    row, column = torch.arange(grid[0], device=x0.device), torch.arange(grid[1], device=x0.device)
    return ((row >= y0) & (row < y1)).unsqueeze(2) & ((column >= x0) & (column < x1)).unsqueeze(1)


def block_age(
    rectangle: PatchRectangle,
    grid: tuple[int, int],
    num_wanted: Int[Tensor, " batch"],
    draws: Float[Tensor, "batch draws"],
    *,
    min_aspect: float,
) -> Int[Tensor, "batch rows columns"]:
    """The number of rounds since a block first covered a patch: 0 never, `BLOCK_ROUNDS` since the first round.

    Args:
        draws: uniform in [0, 1); each round uses four: size, aspect, row and column.
        num_wanted: patches to mask in the rectangle.
    """
    x0, y0, x1, y1 = rectangle
    width, height = x1 - x0, y1 - y0
    covered = torch.zeros(len(x0), *grid, dtype=torch.bool, device=x0.device)
    age = torch.zeros_like(covered, dtype=torch.int64)
    for size, aspect, down, along in draws.double().view(len(draws), BLOCK_ROUNDS, 4).permute(1, 2, 0):
        num_left = (num_wanted - covered.sum((1, 2))).clamp(min=1)
        area = 1 + size * (num_left - 1)
        ratio = min_aspect ** (1 - 2 * aspect)
        block_height = (area * ratio).sqrt().round().long().clamp(min=1).minimum(height)
        block_width = (area / ratio).sqrt().round().long().clamp(min=1).minimum(width)
        top = y0 + (down * (height - block_height + 1)).long()
        left = x0 + (along * (width - block_width + 1)).long()
        covered |= _patches_between(PatchRectangle(left, top, left + block_width, top + block_height), grid)
        age += covered
    return age
