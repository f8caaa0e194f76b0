"""Masks as polygons, boxes, bitmaps and COCO run lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

from refcli.contracts.example import RLE
from refcli.errors import DataError

_MIN_POLYGON_NUMBERS = 6
MAX_MASK_PIXELS = 1 << 29
"""pycocotools counts pixels in 32 bits, and a decoded mask takes a byte per pixel."""
_REACH = 10
"""Largest distance of a polygon from the image, in image sides; pycocotools crashes on very long outlines."""
_MAX_OUTLINE_SIDES, _MAX_OUTLINE = 1_000, 4_000_000
"""Largest length of all outlines of one mask, in image sides and in pixels; pycocotools takes 80 bytes per pixel."""
_FIRST_DIGIT = 48
_PAYLOAD_BITS = 5
_MORE, _SIGN, _PAYLOAD = 0x20, 0x10, 0x1F
_MAX_DIGITS = 12


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> RLE:
    """Compress a bitmap."""
    height, width = mask.shape
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE((int(height), int(width)), encoded["counts"])


def encode_columns(parts: Iterable[Bool[np.ndarray, "height _"]], height: int, width: int) -> RLE:
    """Compress a bitmap given as neighbouring groups of columns; equals `encode_mask` of the complete bitmap."""
    edges = [np.zeros(1, dtype=np.int64)]
    position, last = 0, False
    for part in parts:
        pixels = np.concatenate(([last], part.T.ravel()))
        edges.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + position)
        position, last = position + part.size, bool(pixels[-1])
    runs = np.diff(np.concatenate((*edges, [position])))  # the first run is background, and may be empty
    return _rle(coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))


def scaled_mask(rle: RLE, width: int, height: int) -> Bool[np.ndarray, "height width"]:
    """The bitmap of a compressed mask at a smaller size: a pixel is on if the mask covers at least half of it.

    Raises:
        DataError: as `decode_mask`.
    """
    by_column = decode_mask(rle).T.view(np.uint8)  # contiguous, so resized without a copy
    small: np.ndarray = cv2.resize(by_column, (height, width), interpolation=cv2.INTER_AREA)
    bitmap: np.ndarray = small.T.view(np.bool_)
    return bitmap


def decode_mask(rle: RLE) -> Bool[np.ndarray, "height width"]:
    """The bitmap of a compressed mask (column-major in memory).

    Raises:
        DataError: the run lengths do not describe a mask of that size.
    """
    try:
        bitmap: np.ndarray = coco.decode(_coco(rle))
    except DataError as error:
        raise DataError(f"a mask of size {rle.size} cannot be decoded: {error}") from error
    return bitmap.view(np.bool_)


def union_masks(masks: Sequence[RLE]) -> RLE:
    """The union of one or more masks of the same size.

    Raises:
        DataError: masks of different sizes, or run lengths that do not fill a mask.
    """
    _check_same_size(masks)
    return masks[0] if len(masks) == 1 else _rle(coco.merge([_coco(mask) for mask in masks]))


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """Union of polygons (x1, y1, x2, y2, ... in pixels), rasterised as COCO does.

    Polygons of fewer than three points cover nothing.

    Raises:
        DataError: a polygon has an odd number of coordinates, one that is not finite, or one further than ten times
            the longer side of the image from 0; the outlines together are too long; the image is too large.
    """
    _check_size(height, width)
    reach, longest = _REACH * max(height, width), min(_MAX_OUTLINE_SIDES * max(height, width), _MAX_OUTLINE)
    for polygon in polygons:
        if len(polygon) % 2 or not _is_finite(polygon):
            raise DataError(f"a polygon of {len(polygon)} numbers is not a list of finite x, y pairs")
        if polygon and (min(polygon) < -reach or max(polygon) > reach):
            raise DataError(f"a polygon lies far outside the image of {width} x {height} pixels")
    parts = [list(polygon) for polygon in polygons if len(polygon) >= _MIN_POLYGON_NUMBERS]
    if not parts:
        return runs_to_rle([height * width], height, width)
    if sum(map(_outline, parts)) > longest:
        raise DataError(f"the outlines of the polygons are longer than {longest:,} pixels")
    return _rle(coco.merge(coco.frPyObjects(parts, height, width)))


def runs_to_rle(runs: Sequence[object], height: int, width: int) -> RLE:
    """The mask of uncompressed run lengths, column by column, the first of zeros.

    Raises:
        DataError: a run is negative or not a whole number, the runs do not add up to the pixels of the mask, or the
            mask is too large.
    """
    _check_size(height, width)
    whole = [run for run in runs if type(run) is int and run >= 0]
    if len(whole) != len(runs):
        raise DataError("a run length is negative or not a whole number")
    if sum(whole) != height * width:
        raise DataError(f"the run lengths add up to {sum(whole)} pixels in a mask of {height} x {width}")
    return _rle(coco.frPyObjects({"size": [height, width], "counts": whole}, height, width))


def _outline(polygon: Sequence[float]) -> float:
    """The length of an outline as pycocotools measures edges: along the longer of the two axes."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points[1:] - points[:-1]).max(axis=1).sum() + np.abs(points[0] - points[-1]).max())


def _is_finite(numbers: Sequence[float]) -> bool:
    """Whether no number is NaN or infinite: only then their sum is neither; whole numbers are always finite."""
    try:
        return math.isfinite(sum(numbers))
    except OverflowError:  # whole numbers beyond every float
        return True


def check_run_lengths(rle: RLE) -> None:
    """Refuse a compressed mask whose run lengths do not fill it; pycocotools measures such a mask without an error.

    Raises:
        DataError: the counts are damaged, a run is negative, the runs do not add up to the pixels of the mask, or the
            mask is too large.
    """
    _runs(rle)


@lru_cache(maxsize=4)
def _runs(rle: RLE) -> np.ndarray:
    """The checked run lengths of a mask, read-only; cached, because a mask is used several times."""
    height, width = rle.size
    _check_size(height, width)
    digits = np.frombuffer(rle.counts, dtype=np.uint8).astype(np.int64) - _FIRST_DIGIT
    runs, total = np.zeros(0, dtype=np.int64), 0
    if len(digits):
        if digits.min() < 0 or digits.max() > _MORE | _PAYLOAD:
            raise DataError("the run lengths are damaged")
        last = np.flatnonzero(digits & _MORE == 0)
        if not len(last) or last[-1] != len(digits) - 1:
            raise DataError("the run lengths are cut off")
        first = np.concatenate(([0], last[:-1] + 1))
        num_digits = last - first + 1
        if num_digits.max() > _MAX_DIGITS:
            raise DataError("the run lengths are damaged")
        shifts = _PAYLOAD_BITS * (np.arange(len(digits)) - np.repeat(first, num_digits))
        runs = np.add.reduceat((digits & _PAYLOAD) << shifts, first)
        runs -= np.where(digits[last] & _SIGN, 1 << (_PAYLOAD_BITS * num_digits), 0)
        runs[1::2] = np.cumsum(runs[1::2])  # from the fourth on, runs are stored as differences from the last but one
        runs[2::2] = np.cumsum(runs[2::2])
        if runs.min() < 0:
            raise DataError("a run length is negative")
        if runs.max() > height * width:  # also keeps the sum from overflowing
            raise DataError(f"a run is longer than a mask of {height} x {width}")
        total = int(runs.sum())
    if total != height * width:
        raise DataError(f"the run lengths add up to {total} pixels in a mask of {height} x {width}")
    runs.flags.writeable = False
    return runs


def box_pixels(box_xyxy: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """The half-open (left, top, right, bottom) pixels that COCO fills: edges rounded half up, clipped to the image."""
    x1, y1, x2, y2 = (math.floor(value + 0.5) for value in box_xyxy)
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def rle_area(rle: RLE) -> int:
    """Number of foreground pixels."""
    return int(_runs(rle)[1::2].sum())


def rle_intersection(a: RLE, b: RLE) -> int:
    """Number of pixels in both masks."""
    _check_same_size((a, b))
    return int(coco.area(coco.merge([_coco(a), _coco(b)], intersect=True)))


def subtract_masks(mask: RLE, taken: RLE) -> RLE:
    """The pixels of a mask that are not in another one.

    Raises:
        DataError: masks of different sizes, or run lengths that do not fill a mask.
    """
    _check_same_size((mask, taken))
    return encode_mask(decode_mask(mask) & ~decode_mask(taken))


def mask_iou_matrix(found: Sequence[RLE], truth: Sequence[RLE]) -> Float[np.ndarray, "found truth"]:
    """The IoU of every found mask with every true one; 0 where both are empty.

    Raises:
        DataError: masks of different sizes, or run lengths that do not fill a mask.
    """
    _check_same_size((*found, *truth))
    ious = coco.iou([_coco(mask) for mask in found], [_coco(mask) for mask in truth], [False] * len(truth))
    matrix: Float[np.ndarray, "found truth"] = np.nan_to_num(np.asarray(ious, dtype=np.float64))
    return matrix.reshape(len(found), len(truth))


def mask_box(rle: RLE) -> tuple[float, float, float, float]:
    """The tightest half-open xyxy box around a mask in pixels; an empty mask gives (0, 0, 0, 0)."""
    x, y, width, height = (float(value) for value in coco.toBbox(_coco(rle)))
    return x, y, x + width, y + height


def _coco(rle: RLE) -> dict[str, Any]:
    """A checked mask for pycocotools, which loops forever or reads beyond its memory if run lengths do not fill a mask.

    It also stops at an empty run between others, so the runs beside an empty one are joined.
    """
    runs = _runs(rle)
    if runs[1:].all():
        return {"size": list(rle.size), "counts": rle.counts}
    is_mask = np.arange(len(runs)) % 2 == 1
    runs, is_mask = runs[runs > 0], is_mask[runs > 0]
    starts = np.flatnonzero(np.concatenate(([True], is_mask[1:] != is_mask[:-1])))
    joined = [*([0] if is_mask[0] else []), *np.add.reduceat(runs, starts).tolist()]
    encoded: dict[str, Any] = coco.frPyObjects({"size": list(rle.size), "counts": joined}, *rle.size)
    return encoded


def _rle(encoded: dict[str, Any]) -> RLE:
    height, width = encoded["size"]
    return RLE((int(height), int(width)), encoded["counts"])


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise DataError(f"a mask has {height} x {width} pixels; refcli reads up to {MAX_MASK_PIXELS:,}")


def _check_same_size(masks: Sequence[RLE]) -> None:
    sizes = {tuple(mask.size) for mask in masks}
    if len(sizes) != 1:
        raise DataError(f"masks of different sizes cannot be compared or joined: {sorted(sizes)}")
