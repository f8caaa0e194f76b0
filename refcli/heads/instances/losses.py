"""The losses of the instances head: the centre map, the matched queries and the union."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.contracts.batch import Regions, Targets
from refcli.geometry.box_tensors import cxcywh_to_xyxy, giou_pairs
from refcli.heads.instances.decoder import QueryStage
from refcli.heads.instances.matching import Assignment, match
from refcli.heads.instances.seeds import Seeds
from refcli.losses.averages import mean_over, sum_per
from refcli.losses.masks import dice

SIGMA = 1 / 6
"""Standard deviation of the centre's Gaussian, as a share of the box's side."""
LEAST_SIGMA = 0.4
"""In patches."""
FOCUS, EASE = 2, 4
"""Exponents of CenterNet's focal loss: alpha of the probability, beta of the distance from a centre."""


def centre_focal(centre_logits: Float[Tensor, "batch rows columns"], regions: Regions) -> Float[Tensor, ""]:
    """CenterNet's focal loss of the centre map (Zhou et al. 2019, eq. 1), divided by the number of regions.

    The truth is a Gaussian around the centre of every region, 1 at the patch that holds it. Samples whose regions are
    not separate do not count.
    """
    truth, is_centre = centre_truth(regions, *centre_logits.shape[1:])
    log_p, log_q = F.logsigmoid(centre_logits), F.logsigmoid(-centre_logits)
    p = centre_logits.sigmoid()
    at_centre = -((1 - p) ** FOCUS) * log_p
    elsewhere = -((1 - truth) ** EASE) * p**FOCUS * log_q
    each = torch.where(is_centre, at_centre, elsewhere).sum((1, 2))
    counts = regions.is_real & regions.are_separate[:, None]
    return sum_per(torch.where(regions.are_separate, each, 0.0), counts)


def centre_truth(
    regions: Regions, rows: int, columns: int
) -> tuple[Float[Tensor, "batch rows columns"], Bool[Tensor, "batch rows columns"]]:
    """(the Gaussians' maximum, whether the patch holds a centre)."""
    boxes = regions.boxes_cxcywh.float()
    real = regions.is_real
    x, y = boxes[..., 0] * columns, boxes[..., 1] * rows
    sigma_x = (boxes[..., 2] * columns * SIGMA).clamp(min=LEAST_SIGMA)
    sigma_y = (boxes[..., 3] * rows * SIGMA).clamp(min=LEAST_SIGMA)
    column, row = (torch.arange(n, device=boxes.device) for n in (columns, rows))
    across = (column + 0.5 - x[..., None]) / sigma_x[..., None]
    down = (row + 0.5 - y[..., None]) / sigma_y[..., None]
    heat = torch.exp(-(across[:, :, None, :] ** 2 + down[:, :, :, None] ** 2) / 2) * real[:, :, None, None]
    holds_x = column == x[..., None].floor().clamp(0, columns - 1)
    holds_y = row == y[..., None].floor().clamp(0, rows - 1)
    holds = holds_y[:, :, :, None] & holds_x[:, :, None, :] & real[:, :, None, None]
    if not boxes.shape[1]:
        empty = boxes.new_zeros(len(boxes), rows, columns)
        return empty, empty.bool()
    is_centre = holds.any(1)
    return torch.where(is_centre, 1.0, heat.amax(1)), is_centre


def stage_losses(
    stage: QueryStage, seeds: Seeds, targets: Targets, *, grid: tuple[int, int], mask_logits: Tensor | None
) -> dict[str, Float[Tensor, ""]]:
    """`score_bce`, `box_l1`, `box_giou`, `instance_bce` and `instance_dice` of one stage.

    Args:
        stage: the read-outs.
        seeds: of the queries.
        targets: the truth, with its regions.
        grid: (rows, columns) of patches.
        mask_logits: Float[batch, queries, map_rows, map_columns] of the last stage, compared at the size of the model
            frame; None: the coarse masks are compared at the resolution of the patches.
    """
    regions = targets.regions
    assert regions is not None
    matches = match(stage, seeds, regions)
    batch, queries = stage.score_logits.shape
    is_matched = matches.flags(batch, queries)
    counts = seeds.are_alive & regions.are_separate[:, None] | is_matched
    score = F.binary_cross_entropy_with_logits(stage.score_logits, is_matched.float(), reduction="none")
    predicted = stage.boxes_cxcywh[matches.samples, matches.queries]
    true = regions.boxes_cxcywh[matches.samples, matches.regions].to(predicted.dtype)
    every = torch.ones(len(predicted), dtype=torch.bool, device=predicted.device)
    giou = giou_pairs(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
    return {
        "score_bce": mean_over(score.flatten(), counts.flatten()),
        "box_l1": mean_over((predicted - true).abs().sum(-1), every),
        "box_giou": mean_over(1 - giou, every),
        **_mask_losses(stage, regions, matches, grid=grid, mask_logits=mask_logits),
    }


def _mask_losses(
    stage: QueryStage, regions: Regions, matches: Assignment, *, grid: tuple[int, int], mask_logits: Tensor | None
) -> dict[str, Float[Tensor, ""]]:
    truth = regions.masks[matches.samples, matches.regions].float()
    known = regions.mask_is_known[matches.samples, matches.regions]
    if mask_logits is None:
        logits = stage.coarse_mask_logits[matches.samples, matches.queries].float()
        truth = F.adaptive_avg_pool2d(truth[:, None], grid).flatten(1)
    else:
        chosen = mask_logits[matches.samples, matches.queries][:, None].float()
        logits = F.interpolate(chosen, size=truth.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        truth = truth.flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1)
    return {"instance_bce": mean_over(cross_entropy, known), "instance_dice": mean_over(dice(logits, truth), known)}
