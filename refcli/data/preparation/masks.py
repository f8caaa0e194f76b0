"""COCO segmentations of every kind become one compressed mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pycocotools import mask as coco

from refcli.contracts.example import RLE
from refcli.data.sources.record import RawRegion
from refcli.errors import DataError
from refcli.geometry.masks import union_masks

_NUMBERS_OF_A_TRIANGLE = 6
_decode = msgspec.json.Decoder().decode


def region_mask(region: RawRegion, height: int, width: int) -> RLE | None:
    """The mask of a raw region at its image's size; None if it has none.

    Polygons are united and rasterised as COCO does; those of fewer than three points or with a half point are left
    out, and if none remains there is no mask. Lists of run lengths are united (a pixel of any is a pixel).

    Raises:
        DataError: what is there is no segmentation, or one of another image size.
    """
    given = region.segmentation
    if given is None:
        return None
    if callable(given) and not isinstance(given, RLE):
        given = given()
    mask = _from_json(given, height, width) if isinstance(given, bytes) else given
    if mask is not None and tuple(mask.size) != (height, width):
        raise DataError(f"the mask has the size {tuple(mask.size)}, the image {(height, width)}")
    return mask


def _from_json(text: bytes, height: int, width: int) -> RLE | None:
    try:
        value = _decode(text) if text else None
        if isinstance(value, Mapping):
            return _from_run_lengths(value)
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            return union_masks([_from_run_lengths(one) for one in value])
        polygons = [part for part in value or () if len(part) >= _NUMBERS_OF_A_TRIANGLE and not len(part) % 2]
        if not polygons:
            return None
        return _rle(coco.merge(coco.frPyObjects(polygons, height, width)))
    except (msgspec.DecodeError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"the segmentation cannot be read: {error}") from error


def _from_run_lengths(value: Mapping[str, Any]) -> RLE:
    height, width = (int(side) for side in value["size"])
    counts = value["counts"]
    if isinstance(counts, str):
        return RLE((height, width), counts.encode("latin-1"))
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels in a mask of {height} x {width}")
    return _rle(coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width))


def _rle(encoded: Mapping[str, Any]) -> RLE:
    height, width = encoded["size"]
    return RLE((int(height), int(width)), encoded["counts"])
