"""Boxes, masks, and the model frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = [
    "Frame",
    "box_areas",
    "box_iou_pairs",
    "cxcywh_to_xyxy",
    "decode_mask",
    "encode_mask",
    "giou_pairs",
    "mask_box",
    "polygons_to_rle",
    "rle_area",
    "union_masks",
]

if TYPE_CHECKING:
    from refcli.geometry.box_tensors import box_areas, box_iou_pairs, cxcywh_to_xyxy, giou_pairs
    from refcli.geometry.frame import Frame
    from refcli.geometry.masks import decode_mask, encode_mask, mask_box, polygons_to_rle, rle_area, union_masks
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.geometry.box_tensors": "box_areas box_iou_pairs cxcywh_to_xyxy giou_pairs",
            "refcli.geometry.frame": "Frame",
            "refcli.geometry.masks": "decode_mask encode_mask mask_box polygons_to_rle rle_area union_masks",
        },
    )
