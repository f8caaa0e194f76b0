"""A case as an image: truth and answer over one another, small enough to travel inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from refcli.contracts.example import RLE
from refcli.data.reading.images import LARGE_PIXELS, open_scaled
from refcli.drawing.colours import ANSWER_COLOUR, TRUTH_COLOUR, WHITE, Colour
from refcli.drawing.encoding import encode_jpeg
from refcli.evaluation.report.cases import Case
from refcli.geometry.boxes import BoxXYXY, is_finite
from refcli.geometry.masks import decode_mask, scaled_mask, union_masks

FILL_OPACITY = 0.25
LARGEST_SIDE = 640
SMALLEST_SIDE = 160
STEP = 0.8
JPEG_QUALITY = 80
LINES_ACROSS = 200
"""A line is this part of the drawing's long side."""
SIXTEENTHS = 4
"""Fractional bits of OpenCV's coordinates."""


def draw_case(pixels: np.ndarray, case: Case, *, long_side: int = LARGEST_SIDE) -> np.ndarray:
    """Truth under answer: masks tinted and outlined; the truth's line is wider, so that it shows below the other.

    Args:
        pixels: uint8 RGB [height, width, 3] of the image.
        case: boxes and masks, in pixels of the image as the data set knows it.
        long_side: of the drawing, in pixels.

    Returns:
        uint8 RGB [height, width, 3].
    """
    example = case.example
    factor = long_side / max(example.width, example.height)
    size = max(round(example.width * factor), 1), max(round(example.height * factor), 1)
    how = cv2.INTER_AREA if pixels.shape[1] > size[0] else cv2.INTER_CUBIC
    canvas: np.ndarray = cv2.resize(pixels, size, interpolation=how)
    targets = case.answer.targets if case.answer else ()
    masks = (
        (_union([region.mask for region in example.regions]), TRUTH_COLOUR),
        (_union([target.mask for target in targets]), ANSWER_COLOUR),
    )
    line = max(2, round(long_side / LINES_ACROSS))
    shapes = [(_resized(mask, size), colour) for mask, colour in masks if mask is not None]
    for shape, colour in shapes:
        canvas[shape] = np.rint(canvas[shape] * (1 - FILL_OPACITY) + np.array(colour) * FILL_OPACITY).astype(np.uint8)
    for shape, colour in shapes:
        outline, _ = cv2.findContours(shape.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.polylines(canvas, outline, True, colour, max(1, line // 2), cv2.LINE_AA)
    for region in example.regions:
        _draw_box(canvas, region.box_xyxy, factor, TRUTH_COLOUR, width=2 * line)
    for target in targets:
        _draw_box(canvas, target.box_xyxy, factor, ANSWER_COLOUR, width=line)
    return canvas


def case_jpeg(case: Case, *, max_bytes: int) -> bytes:
    """The drawing as a JPEG of at most so many bytes, if need be a small one (never below 160 pixels).

    Raises:
        ImageError: the image cannot be read.
    """
    read = open_scaled(case.picture)
    pixels = np.asarray(read.image)
    if case.example.width <= 0 or case.example.height <= 0:
        case = replace(case, example=replace(case.example, width=read.width, height=read.height))
    side = float(LARGEST_SIDE)
    while len(encoded := _encoded(pixels, case, side)) > max_bytes and side > SMALLEST_SIDE:
        side = max(side * STEP, SMALLEST_SIDE)
    return encoded


def _encoded(pixels: np.ndarray, case: Case, side: float) -> bytes:
    return encode_jpeg(draw_case(pixels, case, long_side=round(side)), quality=JPEG_QUALITY)


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
