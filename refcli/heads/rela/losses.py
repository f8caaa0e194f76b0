"""ReLA's losses: two-class cross-entropy with class weights, and the truth of the minimap's cells."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.contracts.batch import Targets

BACKGROUND_WEIGHT, FOREGROUND_WEIGHT = 0.9, 1.1
"""Published; "no target" counts as foreground."""
LEAST_WEIGHT = 1e-6
"""Keeps the mean finite where no sample counts."""
HALF = 0.5
CENTRE_SLACK = 1e-4
"""Rounding of four weights that sum to 1; a pixel that counts at all weighs more (1 / (2 side) squared)."""

MinimapTruth = Literal["centre", "area", "soft"]
"""`centre`, as published: a cell is 1 if the pixels around its centre are all in the mask, so small objects may have no
cell. `area`: a cell is 1 if at least half of it is in the mask; where no cell is, the one with the largest part is.
`soft`: the part of the cell that is in the mask."""


def rela_losses(
    mask_logits: Float[Tensor, "batch mask_rows mask_columns"],
    minimap_logits: Float[Tensor, "batch cells"],
    existence_logits: Float[Tensor, " batch"] | None,
    targets: Targets,
    *,
    minimap: MinimapTruth,
) -> dict[str, Float[Tensor, ""]]:
    """`mask_ce` (at the model frame's resolution), `minimap_ce` and `no_target_ce`, unweighted.

    A sample without a referent has an empty mask and an empty minimap, and counts like the others.

    Args:
        mask_logits: of the foreground minus those of the background, as are the cells'.
        minimap_logits: of a square grid of cells, row-major.
        existence_logits: that there is a target; None leaves out `no_target_ce`.
        targets: the truth.
        minimap: how the truth of a cell is defined.
    """
    height_width = targets.masks.shape[-2:]
    enlarged = F.interpolate(mask_logits[:, None].float(), size=height_width, mode="bilinear", align_corners=False)
    cells = minimap_truth(targets.masks, math.isqrt(minimap_logits.shape[1]), minimap)
    known = targets.mask_is_known
    losses = {
        "mask_ce": balanced_cross_entropy(enlarged.flatten(1), targets.masks.flatten(1).float(), known),
        "minimap_ce": balanced_cross_entropy(minimap_logits.float(), cells, known),
    }
    if existence_logits is not None:
        is_absent, all_count = (~targets.exists[:, None]).float(), torch.ones_like(targets.exists)
        losses["no_target_ce"] = balanced_cross_entropy(-existence_logits[:, None].float(), is_absent, all_count)
    return losses


def balanced_cross_entropy(
    logits: Float[Tensor, "batch places"], truth: Float[Tensor, "batch places"], counts: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """sum(w ce) / sum(w) over the samples that count, w = 0.9 for background and 1.1 for foreground.

    In a group of N processes the divisor is that of all of them, divided by N (as in `mean_over`).

    Args:
        logits: of the foreground minus that of the background.
        truth: probability of the foreground.
        counts: which samples count.
    """
    chosen = counts[:, None].float()
    ratio = logits.new_tensor(FOREGROUND_WEIGHT / BACKGROUND_WEIGHT)
    each = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=ratio, reduction="none")
    weights = chosen * (BACKGROUND_WEIGHT + (FOREGROUND_WEIGHT - BACKGROUND_WEIGHT) * truth)
    total = weights.sum()
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return BACKGROUND_WEIGHT * (each * chosen).sum() / total.clamp(min=LEAST_WEIGHT)


def minimap_truth(
    masks: Bool[Tensor, "batch height width"], side: int, kind: MinimapTruth
) -> Float[Tensor, "batch cells"]:
    """The degree, 0..1, to which each of the `side` x `side` cells (row-major) belongs to the mask."""
    if kind == "centre":
        sampled = F.interpolate(masks[:, None].float(), (side, side), mode="bilinear", align_corners=False)
        return (sampled > 1 - CENTRE_SLACK).float().flatten(1)
    covered = _cell_means(masks, side)
    if kind == "soft":
        return covered
    fullest = covered.amax(-1, keepdim=True)
    return ((covered >= HALF) | ((covered == fullest) & (fullest > 0) & (fullest < HALF))).float()


def _cell_means(masks: Bool[Tensor, "batch height width"], side: int) -> Float[Tensor, "batch cells"]:
    """The part of each cell's pixels that is set (0 without pixels); a pixel belongs to the cell of its corner."""
    row_of, column_of = (torch.arange(n, device=masks.device) * side // n for n in masks.shape[1:])
    pixels = masks.float()
    strips = pixels.new_zeros(masks.shape[0], side, masks.shape[2]).index_add(1, row_of, pixels)
    sums = pixels.new_zeros(masks.shape[0], side, side).index_add(2, column_of, strips)
    heights, widths = (of.new_zeros(side).index_add(0, of, torch.ones_like(of)) for of in (row_of, column_of))
    areas = heights[:, None] * widths
    return (sums / areas.clamp(min=1)).flatten(1)
