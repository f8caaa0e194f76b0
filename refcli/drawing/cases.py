"""Draw evaluation cases: truth and answer on one image, small enough for an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from refcli.contracts.example import RLE
from refcli.data.reading.images import LARGE_PIXELS, open_scaled
from refcli.drawing.colours import ANSWER_COLOUR, TRUTH_COLOUR, WHITE, Colour
from refcli.drawing.encoding import encode_jpeg
from refcli.geometry.boxes import BoxXYXY, is_finite
from refcli.geometry.masks import decode_mask, scaled_mask, union_masks

FILL_OPACITY = 0.25
LARGEST_SIDE = 640
SMALLEST_SIDE = 160
STEP = 0.8
JPEG_QUALITY = 80
LINES_ACROSS = 200
"""Ratio of a drawing's long side to the width of its lines."""
SIXTEENTHS = 4
"""Fractional bits of OpenCV's coordinates."""


Regions: TypeAlias = Sequence[tuple[BoxXYXY, RLE | None]]
"""Boxes and masks in pixels of the image, as large as the data set states."""


def draw_case(
    pixels: np.ndarray, size: tuple[int, int], truth: Regions, answer: Regions, *, long_side: int = LARGEST_SIDE
) -> np.ndarray:
    """Draw the truth under the answer: masks are tinted and outlined; the wider line of the truth shows below.

    Args:
        pixels: uint8 RGB [height, width, 3] of the image, which may be reduced.
        size: (width, height) of the image, in the pixels of boxes and masks.
        truth: the true regions.
        answer: the answered ones.
        long_side: of the drawing, in pixels.

    Returns:
        uint8 RGB [height, width, 3].
    """
    factor = long_side / max(size)
    size = max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)
    interpolation = cv2.INTER_AREA if pixels.shape[1] > size[0] else cv2.INTER_CUBIC
    canvas: np.ndarray = cv2.resize(pixels, size, interpolation=interpolation)
    masks = ((_union([mask for _, mask in truth]), TRUTH_COLOUR), (_union([mask for _, mask in answer]), ANSWER_COLOUR))
    line = max(2, round(long_side / LINES_ACROSS))
    shapes = [(_resized(mask, size), colour) for mask, colour in masks if mask is not None]
    for shape, colour in shapes:
        canvas[shape] = np.rint(canvas[shape] * (1 - FILL_OPACITY) + np.array(colour) * FILL_OPACITY).astype(np.uint8)
    for shape, colour in shapes:
        outline, _ = cv2.findContours(shape.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.polylines(canvas, outline, True, colour, max(1, line // 2), cv2.LINE_AA)
    for box, _ in truth:
        _draw_box(canvas, box, factor, TRUTH_COLOUR, width=2 * line)
    for box, _ in answer:
        _draw_box(canvas, box, factor, ANSWER_COLOUR, width=line)
    return canvas


def case_jpeg(image: Path, size: tuple[int, int], truth: Regions, answer: Regions, *, max_bytes: int) -> bytes:
    """The drawing of a case as a JPEG of at most `max_bytes`, reduced if need be, but not below 160 pixels.

    Args:
        image: the file.
        size: see `draw_case`; zeros are replaced by the size of the file.
        truth: the true regions.
        answer: the answered ones.
        max_bytes: limit on the size.

    Raises:
        ImageError: the image cannot be read.
    """
    opened = open_scaled(image)
    pixels = np.asarray(opened.image)
    if min(size) <= 0:
        size = opened.width, opened.height
    side = float(LARGEST_SIDE)
    while True:
        drawing = draw_case(pixels, size, truth, answer, long_side=round(side))
        encoded = encode_jpeg(drawing, quality=JPEG_QUALITY)
        if len(encoded) <= max_bytes or side <= SMALLEST_SIDE:
            return encoded
        side = max(side * STEP, SMALLEST_SIDE)


def _union(masks: Sequence[RLE | None]) -> RLE | None:
    known = [mask for mask in masks if mask is not None]
    return union_masks(known) if known else None


def _resized(mask: RLE, size: tuple[int, int]) -> np.ndarray:
    """Bool [height, width] at (width, height)."""
    if mask.size[0] * mask.size[1] > LARGE_PIXELS:
        return np.ascontiguousarray(scaled_mask(mask, *size))
    share = cv2.resize(decode_mask(mask).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    inside: np.ndarray = share >= 0.5
    return inside


def _draw_box(canvas: np.ndarray, box_xyxy: BoxXYXY, factor: float, colour: Colour, *, width: int) -> None:
    if not is_finite(box_xyxy):
        return
    height, right = canvas.shape[0], canvas.shape[1]
    inset = width / 2
    x1, x2 = np.clip([box_xyxy[0] * factor, box_xyxy[2] * factor], inset, right - 1 - inset)
    y1, y2 = np.clip([box_xyxy[1] * factor, box_xyxy[3] * factor], inset, height - 1 - inset)
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) * (1 << SIXTEENTHS)
    points = [np.rint(corners).astype(np.int32)[:, None]]
    cv2.polylines(canvas, points, True, WHITE, width + 2, cv2.LINE_AA, shift=SIXTEENTHS)
    cv2.polylines(canvas, points, True, colour, width, cv2.LINE_AA, shift=SIXTEENTHS)
