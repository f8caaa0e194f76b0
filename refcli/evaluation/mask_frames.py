"""Where masks are compared: the pixels of the image itself, or a square of model pixels that it is resized to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from refcli.contracts.example import RLE
from refcli.data.views import nearest_indices
from refcli.geometry.frame import Frame
from refcli.geometry.masks import decode_mask, rle_area, rle_intersection


class Overlap(NamedTuple):
    """Pixel counts of one sample."""

    intersection: int
    union: int
    truth: int
    """Area of the true mask; the answer's is `intersection + union - truth`."""


@dataclass(frozen=True)
class MaskFrame:
    """A square of pixels that masks are resized to (nearest pixel) before they are compared.

    Args:
        side: width and height in pixels.
        keeps_aspect: letterboxed, else stretched.
        cells: if set, the answer passes a grid of so many cells a side: a cell is on where the mask is on at the
            cell's centre, and a frame pixel is on where any cell is on that bilinear enlargement would read. That is
            what becomes of a mask which is thresholded at the head's resolution, enlarged, and taken where it is not
            zero (OneRef): it grows by about a frame pixel on every side.
    """

    side: int
    keeps_aspect: bool
    cells: int | None = None

    def overlap(self, truth: RLE | None, found: RLE | None) -> Overlap:
        """Compare two masks of one image; None is an empty mask."""
        true = self._resized(truth) if truth is not None else None
        drawn = self._drawn(found) if found is not None else None
        true_area = 0 if true is None else int(np.count_nonzero(true))
        drawn_area = 0 if drawn is None else int(np.count_nonzero(drawn))
        intersection = 0 if true is None or drawn is None else int(np.count_nonzero(true & drawn))
        return Overlap(intersection, true_area + drawn_area - intersection, true_area)

    def _drawn(self, mask: RLE) -> Bool[np.ndarray, "columns rows"]:
        resized = self._resized(mask)
        if self.cells is None:
            return resized
        step = self.side // self.cells
        cells = resized[step // 2 :: step, step // 2 :: step]
        first, second = _bilinear_taps(self.side, self.cells)
        columns = cells[first] | cells[second]
        grown: Bool[np.ndarray, "columns rows"] = columns[:, first] | columns[:, second]
        return grown

    def _resized(self, mask: RLE) -> Bool[np.ndarray, "columns rows"]:
        """The mask in the frame, column by column as run lengths are (counts do not mind)."""
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


def _bilinear_taps(side: int, cells: int) -> tuple[Int[np.ndarray, " side"], Int[np.ndarray, " side"]]:
    """The two cells that each pixel of a bilinear enlargement reads (half-pixel centres, clamped at the borders)."""
    position = (np.arange(side) + 0.5) * cells / side - 0.5
    lower = np.floor(position).astype(np.int64)
    return lower.clip(0), (lower + 1).clip(max=cells - 1)


IMAGE = "image"
"""The frame of the original image; its counts come from the run lengths alone."""
FRAMES: Mapping[str, MaskFrame | None] = {
    IMAGE: None,
    "letterbox384": MaskFrame(384, keeps_aspect=True, cells=192),
    "stretched480": MaskFrame(480, keeps_aspect=False),
}


def overlap_in(frame: str, truth: RLE | None, found: RLE | None) -> Overlap:
    """Pixel counts of two masks of one image in a row of `FRAMES`; None is an empty mask."""
    resized = FRAMES[frame]
    if resized is not None:
        return resized.overlap(truth, found)
    true_area = 0 if truth is None else rle_area(truth)
    found_area = 0 if found is None else rle_area(found)
    intersection = 0 if truth is None or found is None else rle_intersection(truth, found)
    return Overlap(intersection, true_area + found_area - intersection, true_area)
