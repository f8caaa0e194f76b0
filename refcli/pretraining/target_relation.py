"""What the target-relation scores are trained to be: place and size of the referent (VTS), weight of words (STS)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.config.pretraining import SemanticTargetSettings


def visual_target_relation(
    boxes_cxcywh: Float[Tensor, "batch 4"], grid: tuple[int, int], *, place: Literal["corner", "centre"]
) -> Float[Tensor, "batch patches 4"]:
    """Where a patch lies from the referred box and how large it is beside it (OneRef section 3.2, VTS), row by row.

    The four are (x - cx, y - cy, 1/w, 1/h): the first two in widths and heights of the frame, w and h the box's sides
    in patches, at least 1. A sample without a referent (zero box) gets finite numbers that mean nothing.

    Args:
        boxes_cxcywh: divided by the frame's width and height.
        grid: (rows, columns).
        place: the point (x, y) of a patch: its top left corner (the official code) or its centre.
    """
    rows, columns = grid
    offset = 0.5 if place == "centre" else 0.0
    cx, cy, width, height = boxes_cxcywh[:, :, None, None].unbind(1)
    x = (torch.arange(columns).to(boxes_cxcywh) + offset) / columns - cx
    y = (torch.arange(rows).to(boxes_cxcywh) + offset).unsqueeze(1) / rows - cy
    parts = x, y, 1 / (width * columns).clamp(min=1), 1 / (height * rows).clamp(min=1)
    return torch.stack([part.expand(-1, rows, columns) for part in parts], dim=-1).flatten(1, 2)


def crop_regions(
    images: Float[Tensor, "batch 3 height width"],
    boxes_cxcywh: Float[Tensor, "batch 4"],
    exists: Bool[Tensor, " batch"],
) -> Float[Tensor, "batch 3 height width"]:
    """The referred boxes, each stretched bilinearly to the whole frame; the image itself where there is no referent.

    Args:
        boxes_cxcywh: divided by the frame's width and height.
    """
    whole = boxes_cxcywh.new_tensor([0.5, 0.5, 1.0, 1.0])
    rows, columns = images.shape[-2:]
    cx, cy, width, height = torch.where(exists.unsqueeze(1), boxes_cxcywh, whole)[:, :, None, None].unbind(1)
    x = cx + width * ((torch.arange(columns).to(boxes_cxcywh) + 0.5) / columns - 0.5)
    y = cy + height * ((torch.arange(rows).to(boxes_cxcywh) + 0.5).unsqueeze(1) / rows - 0.5)
    points = 2 * torch.stack([x.expand(-1, rows, -1), y.expand(-1, -1, columns)], dim=-1) - 1
    return F.grid_sample(images, points, mode="bilinear", padding_mode="border", align_corners=False)


def semantic_target_relation(
    region_cls: Float[Tensor, "batch dim"],
    image_cls: Float[Tensor, "batch dim"],
    words: Float[Tensor, "batch words dim"],
    word_counts: Bool[Tensor, "batch words"],
    settings: SemanticTargetSettings,
) -> Float[Tensor, "batch words"]:
    """How much each word says about the region and the image (OneRef section 3.2, STS): sums to 1 over the words.

    s = (lambda_reg softmax(scale <e_reg, w>) + lambda_img softmax(scale <e_img, w>)) / (lambda_reg + lambda_img), with
    cosines as products.

    Args:
        region_cls: class vector of the referred region's crop.
        image_cls: class vector of the whole image.
        words: vectors of the words.
        word_counts: words that take part; the others get 0.
        settings: lambdas, not both 0, and scale.
    """
    pictures = F.normalize(torch.stack([region_cls, image_cls], dim=1).float(), dim=-1)
    cosines = (pictures.unsqueeze(2) * F.normalize(words.float(), dim=-1).unsqueeze(1)).sum(-1)
    shares = (settings.scale * cosines).masked_fill(~word_counts.unsqueeze(1), -torch.inf).softmax(-1)
    weights = shares.new_tensor([settings.region_weight, settings.image_weight])
    return (shares * (weights / weights.sum()).unsqueeze(1)).sum(1).masked_fill(~word_counts, 0.0)
