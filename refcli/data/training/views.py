"""Views: which part of an image is seen, mirrored or not, and where it lies in the model frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from refcli.contracts.example import Region
from refcli.geometry.frame import Frame
from refcli.geometry.masks import box_pixels, decode_mask, union_masks


@dataclass(frozen=True)
class View:
    """One geometric map from an image into the model frame: crop, mirror, letterbox."""

    crop_xyxy: tuple[int, int, int, int]
    """The part of the image that is seen, in whole pixels."""
    is_mirrored: bool
    frame: Frame
    """The letterbox of the (mirrored) crop."""

    @classmethod
    def whole(cls, width: int, height: int, model_width: int, model_height: int) -> View:
        """The evaluation view of an image: everything, letterboxed."""
        return cls((0, 0, width, height), False, Frame.fit(width, height, model_width, model_height))

    def picture(self, image: Image.Image) -> Image.Image:
        """The crop, mirrored and resized (antialiased bilinear) to the size that it has in the model frame."""
        seen = image if self.crop_xyxy == (0, 0, *image.size) else image.crop(self.crop_xyxy)
        size = (self.frame.resized_width, self.frame.resized_height)
        seen = seen if seen.size == size else seen.resize(size, Image.Resampling.BILINEAR)
        return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.is_mirrored else seen

    def boxes(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in image pixels -> model-frame pixels."""
        left, top, right, _ = self.crop_xyxy
        boxes = boxes_xyxy - np.array([left, top, left, top], dtype=np.float64)
        if self.is_mirrored:
            width = right - left
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        return self.frame.boxes_to_model(boxes)

    def source_rows(self) -> Int[np.ndarray, " resized_height"]:
        """The image row that each row of the placed picture shows."""
        _, top, _, bottom = self.crop_xyxy
        return nearest_indices(bottom - top, self.frame.resized_height) + top

    def source_columns(self) -> Int[np.ndarray, " resized_width"]:
        """The image column that each column of the placed picture shows."""
        left, _, right, _ = self.crop_xyxy
        columns = nearest_indices(right - left, self.frame.resized_width) + left
        return columns[::-1] if self.is_mirrored else columns

    def mask(self, regions: Sequence[Region], height: int, width: int) -> Bool[np.ndarray, "model_height model_width"]:
        """Union of the regions of an image of that size, in the model frame (nearest source pixel)."""
        frame = self.frame
        mask = np.zeros((frame.model_height, frame.model_width), dtype=np.bool_)
        placed = mask[frame.top : frame.top + frame.resized_height, frame.left : frame.left + frame.resized_width]
        rows, columns = self.source_rows(), self.source_columns()
        known = [region.mask for region in regions if region.mask is not None]
        if known:
            by_column = decode_mask(union_masks(known)).T  # contiguous: run lengths are column-major
            placed[:] = by_column[columns][:, rows].T
        for region in regions:
            if region.mask is None:
                left, top, right, bottom = box_pixels(region.box_xyxy, height, width)
                placed |= ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        return mask


def nearest_indices(num_source: int, num_target: int) -> Int[np.ndarray, " target"]:
    """The source pixel of each target pixel: floor(target * scale) in fp32, as torch's "nearest" interpolation."""
    scale = np.float32(num_source) / np.float32(num_target)
    indices = np.floor(np.arange(num_target, dtype=np.float32) * scale).astype(np.int64)
    clipped: Int[np.ndarray, " target"] = np.minimum(indices, num_source - 1)
    return clipped


def enclosing_box(regions: Sequence[Region]) -> Float[np.ndarray, " 4"] | None:
    """The xyxy box around all regions, or None where there is none."""
    if not regions:
        return None
    boxes = np.array([region.box_xyxy for region in regions], dtype=np.float64)
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
