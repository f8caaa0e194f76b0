"""COCO segmentations of every kind become one compressed mask."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from refcli.contracts.example import RLE
from refcli.data.sources.known_keys import excerpt
from refcli.data.sources.record import RawRegion
from refcli.errors import DataError
from refcli.geometry.masks import check_run_lengths, polygons_to_rle, runs_to_rle, union_masks

_NUMBERS_OF_A_TRIANGLE = 6
_decode = msgspec.json.Decoder().decode


def region_mask(region: RawRegion, height: int, width: int) -> RLE | None:
    """The mask of a raw region at its image's size; None if it has none.

    Polygons (also one polygon by itself) are united and rasterised as COCO does; those of fewer than three points or
    with a half point are left out, and if none remains there is no mask. Lists of run lengths are united (a
    pixel of any is a pixel).

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
        return _from_value(value, height, width)
    except RecursionError as error:
        raise DataError("the segmentation is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the segmentation cannot be read: {error}") from error


def _from_value(value: object, height: int, width: int) -> RLE | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return _from_run_lengths(value, height, width)
    if not isinstance(value, list):
        raise DataError(f"the segmentation cannot be read: neither polygons nor run lengths but {excerpt(value)}")
    if value and all(isinstance(part, dict) for part in value):
        return union_masks([_from_run_lengths(one, height, width) for one in value])
    parts = [value] if value and all(_is_number(part) for part in value) else value
    polygons: list[list[float]] = []
    for part in parts:
        if not isinstance(part, list) or not all(_is_number(number) for number in part):
            raise DataError(f"the segmentation cannot be read: a polygon is not a list of numbers but {excerpt(part)}")
        if len(part) >= _NUMBERS_OF_A_TRIANGLE and not len(part) % 2:
            polygons.append(part)
    return polygons_to_rle(polygons, height, width) if polygons else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_run_lengths(value: Mapping[str, object], height: int, width: int) -> RLE:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        raise DataError(f"the segmentation cannot be read: its size is not height and width but {excerpt(size)}")
    _check_size(tuple(size), height, width)
    if isinstance(counts, str):
        if not counts.isascii():
            raise DataError("the run lengths are damaged")
        mask = RLE((height, width), counts.encode("ascii"))
        check_run_lengths(mask)
        return mask
    if not isinstance(counts, list):
        raise DataError(f"the segmentation cannot be read: its counts are {excerpt(counts)}")
    return runs_to_rle(counts, height, width)


def _check_size(size: tuple[int, ...], height: int, width: int) -> None:
    if tuple(size) != (height, width):
        raise DataError(f"the mask has the size {tuple(size)}, the image {(height, width)}")
