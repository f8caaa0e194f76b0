"""OneRef's losses: the box, the patch similarities and the mask, each against the truth at its resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.contracts.batch import Targets
from refcli.geometry.box_tensors import cxcywh_to_xyxy
from refcli.losses.averages import mean_over
from refcli.losses.boxes import box_giou, box_l1
from refcli.losses.masks import dice, sigmoid_focal


def box_losses(boxes_cxcywh: Float[Tensor, "batch 4"], targets: Targets) -> dict[str, Float[Tensor, ""]]:
    """`box_l1` and `box_giou` over the samples with a referent."""
    return {
        "box_l1": box_l1(boxes_cxcywh, targets.boxes_cxcywh, targets.exists),
        "box_giou": box_giou(boxes_cxcywh, targets.boxes_cxcywh, targets.exists),
    }


def similarity_losses(
    logits: Float[Tensor, "batch patches"],
    pixels: Bool[Tensor, "batch height width"],
    exists: Bool[Tensor, " batch"],
    *,
    grid: tuple[int, int],
) -> dict[str, Float[Tensor, ""]]:
    """`similarity_focal` over all samples and `similarity_dice` over those with a referent.

    Args:
        logits: of the patches, row-major over `grid`.
        pixels: the truth in the model frame: the filled box or the mask.
        exists: samples with a referent.
        grid: (rows, columns) of patches.
    """
    truth = patch_truth(pixels, grid).flatten(1)
    return {
        "similarity_focal": sigmoid_focal(logits.float(), truth).mean(),
        "similarity_dice": mean_over(dice(logits.float(), truth), exists),
    }


def mask_losses(
    mask_logits: Float[Tensor, "batch mask_height mask_width"], targets: Targets
) -> dict[str, Float[Tensor, ""]]:
    """`mask_focal` and `mask_dice` at the resolution of the model frame, over the samples with a known mask."""
    truth, size = targets.masks.flatten(1).float(), targets.masks.shape[-2:]
    logits = F.interpolate(mask_logits[:, None].float(), size, mode="bilinear", align_corners=False).flatten(1)
    known = targets.mask_is_known
    return {
        "mask_focal": mean_over(sigmoid_focal(logits, truth), known),
        "mask_dice": mean_over(dice(logits, truth), known & targets.exists),
    }


def patch_truth(
    pixels: Bool[Tensor, "batch height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch grid_rows grid_columns"]:
    """1 where the top-left pixel of a patch is set: the official nearest-neighbour downsampling."""
    step_y, step_x = pixels.shape[1] // grid[0], pixels.shape[2] // grid[1]
    return pixels[:, ::step_y, ::step_x].float()


def filled_boxes(
    boxes_cxcywh: Float[Tensor, "batch 4"], image_size: tuple[int, int]
) -> Bool[Tensor, "batch height width"]:
    """Fill boxes (fractions of the frame) on the pixel grid of the model frame.

    A pixel column x is inside when floor(x1 + .5) <= x < floor(x2 + .5): COCO's rasterisation of a box.
    """
    height, width = image_size
    corners = cxcywh_to_xyxy(boxes_cxcywh) * boxes_cxcywh.new_tensor([width, height, width, height])
    x1, y1, x2, y2 = (corners + 0.5).floor().unsqueeze(-1).unbind(1)
    columns = torch.arange(width, device=corners.device)
    rows = torch.arange(height, device=corners.device)
    inside_x = (columns >= x1) & (columns < x2)
    inside_y = (rows >= y1) & (rows < y2)
    return inside_y[:, :, None] & inside_x[:, None, :]
