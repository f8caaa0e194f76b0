"""The mapping between image pixels and the pixels of the model frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROWS_AT_ONCE = 64
"""Image rows whose logits are interpolated together: few enough for the processor's cache."""
TAPS_AT_ONCE = 1 << 16
"""Image rows whose interpolation weights are in memory at a time."""
COLUMNS_AT_ONCE, PIXELS_AT_ONCE = 1024, 1 << 22
"""Columns per group of `Frame.mask_columns`, and pixels per group where columns are short."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A letterbox: the image is resized by one ratio and placed inside the model frame.

    Sizes and offsets are in pixels. `resized_*` are rounded to whole pixels; boxes are scaled by the unrounded `ratio`,
    as in the published evaluation, so they are exact only to less than a pixel.
    """

    image_width: int
    image_height: int
    resized_width: int
    resized_height: int
    left: int
    top: int
    model_width: int
    model_height: int
    ratio: float
    """Model pixels per image pixel, before rounding the resized sides."""

    @classmethod
    def fit(
        cls, image_width: int, image_height: int, model_width: int, model_height: int, *, scale: float = 1.0
    ) -> Frame:
        """The evaluation letterbox: as large as fits, centred, offsets rounded down (OneRef, evaluation transform).

        Args:
            image_width: width of the image in pixels.
            image_height: height of the image in pixels.
            model_width: width of the model frame in pixels.
            model_height: height of the model frame in pixels.
            scale: size of the image relative to the largest one that fits, in (0, 1].
        """
        ratio = min(model_width / image_width, model_height / image_height) * scale
        resized_width = min(max(round(image_width * ratio), 1), model_width)
        resized_height = min(max(round(image_height * ratio), 1), model_height)
        return cls(
            image_width=image_width,
            image_height=image_height,
            resized_width=resized_width,
            resized_height=resized_height,
            left=(model_width - resized_width) // 2,
            top=(model_height - resized_height) // 2,
            model_width=model_width,
            model_height=model_height,
            ratio=ratio,
        )

    def boxes_to_model(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in image pixels -> boxes in model-frame pixels (not clipped)."""
        boxes: Float[np.ndarray, "n 4"] = np.asarray(boxes_xyxy) * self.ratio + self._offsets()
        return boxes

    def boxes_to_image(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in model-frame pixels -> boxes in image pixels, clipped to the image."""
        sides = (self.image_width, self.image_height)
        clipped: Float[np.ndarray, "n 4"] = np.clip(self.boxes_around_image(boxes_xyxy), 0, sides + sides)
        return clipped

    def boxes_around_image(self, boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes in model-frame pixels -> boxes in image pixels, not clipped, so they may extend over the padding."""
        boxes: Float[np.ndarray, "n 4"] = (np.asarray(boxes_xyxy) - self._offsets()) / self.ratio
        return boxes

    def masks_to_image(
        self, mask_logits: Float[Tensor, "targets mask_height mask_width"]
    ) -> Bool[np.ndarray, "targets image_height image_width"]:
        """Mask logits that cover the whole model frame -> bitmaps of the image.

        The letterbox is cut out before it is resized, so that predictions on the padding cannot bleed into the image;
        logits are interpolated bilinearly and are foreground where > 0.
        """
        logits = mask_logits.detach().float().cpu()
        masks = np.empty((len(logits), self.image_height, self.image_width), dtype=np.bool_)
        for target, plane in enumerate(logits):
            self._enlarge(plane, slice(0, self.image_width), masks[target])
        return masks

    def mask_columns(
        self, mask_logits: Float[Tensor, "mask_height mask_width"]
    ) -> Iterator[Bool[np.ndarray, "image_height columns"]]:
        """The mask of one target as consecutive groups of image columns, for images too large for one bitmap."""
        plane = mask_logits.detach().float().cpu()
        step = max(COLUMNS_AT_ONCE, PIXELS_AT_ONCE // self.image_height)
        for start in range(0, self.image_width, step):
            part = slice(start, min(start + step, self.image_width))
            bitmap = np.empty((self.image_height, part.stop - start), dtype=np.bool_)
            self._enlarge(plane, part, bitmap)
            yield bitmap

    def _enlarge(self, plane: Tensor, part: slice, bitmap: np.ndarray) -> None:
        """Fill the bitmap of some image columns."""
        mask_height, mask_width = plane.shape
        x0, x1, x_weight = _taps(
            part, self.image_width, self.resized_width, self.left, mask_width / self.model_width, mask_width
        )
        columns = torch.lerp(plane[:, x0], plane[:, x1], x_weight)
        for start in range(0, self.image_height, TAPS_AT_ONCE):
            band = slice(start, min(start + TAPS_AT_ONCE, self.image_height))
            y0, y1, y_weight = _taps(
                band, self.image_height, self.resized_height, self.top, mask_height / self.model_height, mask_height
            )
            for first in range(0, band.stop - start, ROWS_AT_ONCE):
                few = slice(first, first + ROWS_AT_ONCE)
                rows = torch.lerp(columns[y0[few]], columns[y1[few]], y_weight[few, None])
                bitmap[start:][few] = (rows > 0).numpy()

    def _offsets(self) -> Float[np.ndarray, " 4"]:
        return np.array([self.left, self.top, self.left, self.top], dtype=np.float64)


def _taps(
    part: slice, num_pixels: int, resized: int, offset: int, cells_per_pixel: float, num_cells: int
) -> tuple[Tensor, ...]:
    """For some image pixels along one axis: the two neighbouring mask cells and the weight of the second.

    Args:
        part: the image pixels.
        num_pixels: image pixels along the axis.
        resized: model-frame pixels of the image.
        offset: model-frame pixels before the image.
        cells_per_pixel: mask cells per model-frame pixel.
        num_cells: mask cells along the whole frame.
    """
    centres = (torch.arange(part.start, part.stop, dtype=torch.float64) + 0.5) * (resized / num_pixels) + offset
    first, last = offset * cells_per_pixel, (offset + resized) * cells_per_pixel - 1
    if last < first:  # the image is narrower than one cell
        first = last = (first + last) / 2
    position = (centres * cells_per_pixel - 0.5).clamp(first, last).clamp(0, num_cells - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=num_cells - 1), (position - lower).float()
