"""Boxes as tensors: formats, IoU and GIoU of pairs, differentiable and without NaN on degenerate boxes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """(centre x, centre y, width, height) -> (left, top, right, bottom), in the same unit."""
    cx, cy, width, height = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), dim=-1)


def box_areas(boxes_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Areas; a box whose right (bottom) edge is not beyond its left (top) edge has area 0."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou_pairs(a_xyxy: Float[Tensor, "*n 4"], b_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Intersection over union of box i of `a` with box i of `b`, in 0..1 (0 where both are empty)."""
    return _iou_and_union(a_xyxy, b_xyxy)[0]


def giou_pairs(a_xyxy: Float[Tensor, "*n 4"], b_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Generalised IoU of box i of `a` with box i of `b`, in -1..1 (Rezatofighi et al., CVPR 2019, eq. 6).

    IoU minus the share of the enclosing box that neither box covers.
    """
    iou, union = _iou_and_union(a_xyxy, b_xyxy)
    hull = box_areas(
        torch.cat((torch.minimum(a_xyxy, b_xyxy)[..., :2], torch.maximum(a_xyxy, b_xyxy)[..., 2:]), dim=-1)
    )
    return iou - (hull - union) / torch.where(hull > 0, hull, 1.0)


def _iou_and_union(
    a_xyxy: Float[Tensor, "*n 4"], b_xyxy: Float[Tensor, "*n 4"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    overlap = torch.cat((torch.maximum(a_xyxy, b_xyxy)[..., :2], torch.minimum(a_xyxy, b_xyxy)[..., 2:]), dim=-1)
    intersection = box_areas(overlap)
    union = box_areas(a_xyxy) + box_areas(b_xyxy) - intersection
    # Two empty boxes: 0 / 1, so that neither the value nor the gradient is NaN.
    return intersection / torch.where(union > 0, union, 1.0), union
