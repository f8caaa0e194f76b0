"""The frames in which masks are compared: the image itself, or a square of model pixels that it is resized to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from refcli.contracts.example import RLE
from refcli.data.training.transforms import nearest_indices
from refcli.geometry.frame import Frame
from refcli.geometry.masks import decode_mask, rle_area, rle_intersection, subtract_masks

_POSITION_DECIMALS = 9
"""Positions among cells are rounded to this, so that no pixel reads a cell of weight 0 because of rounding errors."""


class MaskOverlap(NamedTuple):
    """Pixel counts of one sample."""

    intersection: int
    union: int
    truth: int
    """Area of the true mask; the answer's is `intersection + union - truth`."""


class ModelMask(NamedTuple):
    """A mask as the model gave it, over its whole letterbox including the padding."""

    frame_size: tuple[int, int]
    """(height, width) of the letterbox in pixels."""
    cells: RLE
    """At the resolution of the head."""


@dataclass(frozen=True)
class MaskFrame:
    """A square of pixels that masks are resized to (nearest pixel) before they are compared.

    Args:
        side: width and height in pixels.
        keeps_aspect: letterboxed, else stretched.
        cells: if set, the answered mask passes through a grid with this many cells per side: a cell is on if the mask
            is on at its centre, and a frame pixel is on if bilinear enlargement would read any cell that is on. This
            equals a mask that is thresholded at the head's resolution, enlarged, and on where it is not zero (OneRef):
            it grows by about one frame pixel on every side. If the model's own masks are known, they are the cells;
            they also cover the padding, which masks of the image do not.
    """

    side: int
    keeps_aspect: bool
    cells: int | None = None

    def overlap(
        self,
        truth: RLE | None,
        found: RLE | None,
        model_masks: Sequence[ModelMask] = (),
        ignored: RLE | None = None,
    ) -> MaskOverlap:
        """Compare two masks of one image; None is an empty mask.

        `model_masks` is `found` as the model gave it; `ignored` is resized like the truth and taken out of both.
        """
        true = self._resized(truth) if truth is not None else None
        drawn = self._answer_in_frame(found, model_masks) if found is not None else None
        if ignored is not None:
            counts = ~self._resized(ignored)
            true, drawn = (None if mask is None else mask & counts for mask in (true, drawn))
        true_area = 0 if true is None else int(np.count_nonzero(true))
        drawn_area = 0 if drawn is None else int(np.count_nonzero(drawn))
        intersection = 0 if true is None or drawn is None else int(np.count_nonzero(true & drawn))
        return MaskOverlap(intersection, true_area + drawn_area - intersection, true_area)

    def _answer_in_frame(self, mask: RLE, model_masks: Sequence[ModelMask]) -> Bool[np.ndarray, "columns rows"]:
        if self.cells is not None and model_masks:
            return reduce(np.logical_or, (self._enlarged(one, mask) for one in model_masks))
        resized = self._resized(mask)
        if self.cells is None:
            return resized
        step = self.side // self.cells
        position = (np.arange(self.side) + 0.5) * self.cells / self.side - 0.5
        taps = _taps(position, self.cells)
        return _grown(resized[step // 2 :: step, step // 2 :: step], taps, taps)

    def _enlarged(self, mask: ModelMask, image: RLE) -> Bool[np.ndarray, "columns rows"]:
        """The model's cells enlarged to this letterbox of the same image; the model's own may have another size."""
        height, width = image.size
        here = Frame.fit(width, height, self.side, self.side)
        there = Frame.fit(width, height, *mask.frame_size[::-1])
        rows, columns = mask.cells.size
        pixels = np.arange(self.side) + 0.5
        across = (pixels - here.left) * (there.resized_width / here.resized_width) + there.left
        down = (pixels - here.top) * (there.resized_height / here.resized_height) + there.top
        return _grown(
            decode_mask(mask.cells).T,
            _taps(across * (columns / there.model_width) - 0.5, columns),
            _taps(down * (rows / there.model_height) - 0.5, rows),
        )

    def _resized(self, mask: RLE) -> Bool[np.ndarray, "columns rows"]:
        """The mask in the frame, column by column as run lengths are (counts do not depend on it)."""
        height, width = mask.size
        by_column = decode_mask(mask).T
        if not self.keeps_aspect:
            columns, rows = nearest_indices(width, self.side), nearest_indices(height, self.side)
            stretched: Bool[np.ndarray, "columns rows"] = by_column[columns][:, rows]
            return stretched
        frame = Frame.fit(width, height, self.side, self.side)
        canvas = np.zeros((self.side, self.side), dtype=np.bool_)
        columns = nearest_indices(width, frame.resized_width)
        rows = nearest_indices(height, frame.resized_height)
        canvas[frame.left : frame.left + frame.resized_width, frame.top : frame.top + frame.resized_height] = by_column[
            columns
        ][:, rows]
        return canvas


_Taps: TypeAlias = tuple[Int[np.ndarray, " side"], Int[np.ndarray, " side"]]


def _taps(position: Float[np.ndarray, " side"], num_cells: int) -> _Taps:
    """The two cells that each pixel of a bilinear enlargement reads (half-pixel centres, clamped at the borders).

    Args:
        position: the pixel's position among the cells; 0 is the centre of the first.
        num_cells: cells along the axis. A pixel at a cell's centre reads that cell only.
    """
    position = position.round(_POSITION_DECIMALS).clip(0, num_cells - 1)
    lower = np.floor(position).astype(np.int64)
    return lower, np.where(position > lower, lower + 1, lower)


def _grown(cells: Bool[np.ndarray, "columns rows"], across: _Taps, down: _Taps) -> Bool[np.ndarray, "columns rows"]:
    """On where any of the four cells that a pixel reads is on."""
    columns = cells[across[0]] | cells[across[1]]
    grown: Bool[np.ndarray, "columns rows"] = columns[:, down[0]] | columns[:, down[1]]
    return grown


IMAGE = "image"
"""The frame of the original image; its pixels are counted without decoding the masks."""
FRAMES: Mapping[str, MaskFrame | None] = {
    IMAGE: None,
    "letterbox384": MaskFrame(384, keeps_aspect=True, cells=192),
    "stretched480": MaskFrame(480, keeps_aspect=False),
}


def overlap_in(
    frame: str,
    truth: RLE | None,
    found: RLE | None,
    model_masks: Sequence[ModelMask] = (),
    ignored: RLE | None = None,
) -> MaskOverlap:
    """Pixel counts of two masks of one image in a row of `FRAMES`; None is an empty mask.

    Args:
        frame: the row.
        truth: the true mask.
        found: the answered one.
        model_masks: the parts of `found` as the model gave them; empty: unknown.
        ignored: pixels that count in neither mask.
    """
    resized = FRAMES[frame]
    if resized is not None:
        return resized.overlap(truth, found, model_masks, ignored)
    if ignored is not None:
        truth, found = (None if mask is None else subtract_masks(mask, ignored) for mask in (truth, found))
    true_area = 0 if truth is None else rle_area(truth)
    found_area = 0 if found is None else rle_area(found)
    intersection = 0 if truth is None or found is None else rle_intersection(truth, found)
    return MaskOverlap(intersection, true_area + found_area - intersection, true_area)
