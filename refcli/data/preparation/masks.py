"""COCO segmentations of every kind become one compressed mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from refcli.contracts.example import RLE
from refcli.data.sources.record import RawRegion
from refcli.errors import DataError
from refcli.geometry.masks import check_run_lengths, polygons_to_rle, runs_to_rle, union_masks

_NUMBERS_OF_A_TRIANGLE = 6
_UNREADABLE = (
    msgspec.DecodeError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
)
"""What values of other types and ranges than a segmentation's raise."""
_decode = msgspec.json.Decoder().decode


def region_mask(region: RawRegion, height: int, width: int) -> RLE | None:
    """The mask of a raw region at its image's size; None if it has none.

    Polygons are united and rasterised as COCO does; those of fewer than three points or with a half point are left
    out, and if none remains there is no mask. Lists of run lengths are united (a pixel of any is a pixel).

    Raises:
        DataError: what is there is no segmentation, is one of another image size or lies far outside of the image, or
            has run lengths that do not fill it.
    """
    given = region.segmentation
    if given is None:
        return None
    if callable(given) and not isinstance(given, RLE):
        given = given()
    if isinstance(given, bytes):
        return _from_json(given, height, width)
    if given is not None:
        _check_size(given.size, height, width)
        check_run_lengths(given)
    return given


def _from_json(text: bytes, height: int, width: int) -> RLE | None:
    try:
        value = _decode(text) if text else None
        if isinstance(value, Mapping):
            return _from_run_lengths(value, height, width)
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            return union_masks([_from_run_lengths(one, height, width) for one in value])
        polygons = [part for part in value or () if len(part) >= _NUMBERS_OF_A_TRIANGLE and not len(part) % 2]
        return polygons_to_rle(polygons, height, width) if polygons else None
    except _UNREADABLE as error:
        raise DataError(f"the segmentation cannot be read: {error}") from error


def _from_run_lengths(value: Mapping[str, Any], height: int, width: int) -> RLE:
    size = tuple(value["size"])
    _check_size(size, height, width)
    counts = value["counts"]
    if isinstance(counts, str):
        mask = RLE((height, width), counts.encode("latin-1"))
        check_run_lengths(mask)
        return mask
    return runs_to_rle(counts, height, width)


def _check_size(size: tuple[int, ...], height: int, width: int) -> None:
    if tuple(size) != (height, width):
        raise DataError(f"the mask has the size {tuple(size)}, the image {(height, width)}")
