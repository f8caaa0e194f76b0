"""Truth at the resolution a head predicts at."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.geometry.box_tensors import cxcywh_to_xyxy


def patch_truth(
    pixels: Bool[Tensor, "batch height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch grid_rows grid_columns"]:
    """1 where the top-left pixel of a patch is set: the official nearest down-sampling."""
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
