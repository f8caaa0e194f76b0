"""Maps from an image into the model frame: crop, mirror, letterbox, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image

from refcli.config.schema import TowerSettings
from refcli.contracts.example import Region
from refcli.geometry.frame import Frame
from refcli.geometry.masks import box_pixels, decode_mask, union_masks

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in 0..1 (OneRef's transforms)."""

_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
_NORMALISED: Float32[np.ndarray, "3 256"] = np.stack(
    [(_LEVELS - np.float32(mean)) / np.float32(std) for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
)


@dataclass(frozen=True)
class View:
    """One geometric map from an image into the model frame: crop, mirror, letterbox."""

    crop_xyxy: tuple[int, int, int, int]
    """The visible part of the image, in whole pixels."""
    is_mirrored: bool
    frame: Frame
    """The letterbox of the (mirrored) crop."""

    @classmethod
    def whole(cls, width: int, height: int, model_width: int, model_height: int) -> View:
        """The evaluation view: the whole image, letterboxed."""
        return cls((0, 0, width, height), False, Frame.fit(width, height, model_width, model_height))

    def image(self, image: Image.Image) -> Image.Image:
        """The crop, mirrored and resized (antialiased bilinear) to its size in the model frame."""
        visible = image if self.crop_xyxy == (0, 0, *image.size) else image.crop(self.crop_xyxy)
        size = (self.frame.resized_width, self.frame.resized_height)
        visible = visible if visible.size == size else visible.resize(size, Image.Resampling.BILINEAR)
        return visible.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.is_mirrored else visible

    def boxes(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in image pixels -> model-frame pixels."""
        left, top, right, _ = self.crop_xyxy
        boxes = boxes_xyxy - np.array([left, top, left, top], dtype=np.float64)
        if self.is_mirrored:
            width = right - left
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        return self.frame.boxes_to_model(boxes)

    def source_rows(self) -> Int[np.ndarray, " resized_height"]:
        """The image row that each row of the resized crop shows."""
        _, top, _, bottom = self.crop_xyxy
        return nearest_indices(bottom - top, self.frame.resized_height) + top

    def source_columns(self) -> Int[np.ndarray, " resized_width"]:
        """The image column that each column of the resized crop shows."""
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


def letterbox(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image, tower: TowerSettings, *, size: tuple[int, int] | None = None
) -> tuple[Float32[np.ndarray, "3 model_height model_width"], Frame]:
    """The evaluation transform of an image, and the frame that maps back to its pixels.

    `size` is the (width, height) of the original if the image is a reduced copy; the frame then maps to the original.
    """
    source = image if isinstance(image, Image.Image) else Image.fromarray(image)
    model_height, model_width = tower.image_size
    frame = Frame.fit(*(size or source.size), model_width, model_height)
    view = View((0, 0, *source.size), False, frame)
    return normalise(view.image(source), frame), frame


def normalise(resized: Image.Image, frame: Frame) -> Float32[np.ndarray, "3 model_height model_width"]:
    """Normalise an image that already has its size in the model frame, and pad it with zeros."""
    canvas = np.zeros((3, frame.model_height, frame.model_width), dtype=np.float32)
    rows = slice(frame.top, frame.top + frame.resized_height)
    columns = slice(frame.left, frame.left + frame.resized_width)
    for table, levels, plane in zip(_NORMALISED, resized.split(), canvas, strict=True):
        plane[rows, columns] = table[np.asarray(levels)]
    return canvas


def nearest_indices(num_source: int, num_target: int) -> Int[np.ndarray, " target"]:
    """The source pixel of each target pixel: floor(target * scale) in fp32, as torch's "nearest" interpolation."""
    scale = np.float32(num_source) / np.float32(num_target)
    indices = np.floor(np.arange(num_target, dtype=np.float32) * scale).astype(np.int64)
    clipped: Int[np.ndarray, " target"] = np.minimum(indices, num_source - 1)
    return clipped
