"""Targets of the visual target-relation score (VTS): position and size of the referred box relative to every patch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def visual_target_relation(
    boxes_cxcywh: Float[Tensor, "batch 4"], grid: tuple[int, int], *, place: Literal["corner", "centre"]
) -> Float[Tensor, "batch patches 4"]:
    """The position of every patch relative to the referred box, and its size relative to it (OneRef section 3.2, VTS).

    The four numbers are (x - cx, y - cy, 1/w, 1/h): the first two in widths and heights of the frame; w and h are the
    box's sides in patches, at least 1. A sample without a referent (zero box) gets finite numbers without meaning.

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
