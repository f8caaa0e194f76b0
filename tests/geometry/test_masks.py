"""Polygons, boxes, bitmaps and run lengths."""

import json

import numpy as np
import pytest

from refcli.contracts.example import RLE
from refcli.errors import DataError
from refcli.geometry.masks import (
    box_pixels,
    decode_mask,
    encode_mask,
    mask_box,
    polygons_to_rle,
    rle_area,
    rle_intersection,
    union_masks,
)


def rectangle(top, left, bottom, right, height=20, width=30):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_polygons_become_the_published_pixels(fixtures):
    golden = np.load(fixtures / "transforms" / "eval_transform.npz")["poly.mask"][0]
    case = json.loads((fixtures / "transforms" / "meta.json").read_text())["poly"]
    mask = decode_mask(polygons_to_rle(case["polygons"], case["height"], case["width"]))
    np.testing.assert_array_equal(mask, golden.astype(bool))


def test_a_box_becomes_the_published_pixels(fixtures):
    golden = np.load(fixtures / "transforms" / "eval_transform.npz")["boxmask.mask"][0]
    case = json.loads((fixtures / "transforms" / "meta.json").read_text())["boxmask"]
    x, y, width, height = case["box_xywh"]
    left, top, right, bottom = box_pixels((x, y, x + width, y + height), case["height"], case["width"])
    mask = rectangle(top, left, bottom, right, case["height"], case["width"])
    np.testing.assert_array_equal(mask, golden.astype(bool))


def test_a_bitmap_survives_compression():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (7, 300), (300, 7), (64, 64)]:
        mask = rng.random(shape) < 0.4
        rle = encode_mask(mask)
        assert rle.size == shape
        np.testing.assert_array_equal(decode_mask(rle), mask)


def test_area_union_and_intersection_count_pixels():
    first, second = rectangle(0, 0, 10, 10), rectangle(5, 5, 15, 20)
    a, b = encode_mask(first), encode_mask(second)
    assert rle_area(a) == 100
    assert rle_area(union_masks([a, b])) == (first | second).sum()
    assert rle_intersection(a, b) == 25


def test_masks_of_different_sizes_are_refused():
    small, large = encode_mask(np.ones((4, 4), bool)), encode_mask(np.ones((5, 4), bool))
    with pytest.raises(DataError, match="different sizes"):
        rle_intersection(small, large)
    with pytest.raises(DataError, match="different sizes"):
        union_masks([small, large])


def test_the_box_of_a_mask_is_half_open():
    assert mask_box(encode_mask(rectangle(3, 4, 9, 12))) == (4.0, 3.0, 12.0, 9.0)
    assert mask_box(encode_mask(rectangle(0, 0, 20, 30))) == (0.0, 0.0, 30.0, 20.0)


def test_box_pixels_round_half_up_and_stay_inside():
    assert box_pixels((0.5, 1.49, 2.5, 100.0), height=10, width=30) == (1, 1, 3, 10)
    assert box_pixels((-20.0, -1.0, -3.0, 5.0), height=10, width=30) == (0, 0, 0, 5)


def test_polygons_without_area_are_empty_and_malformed_ones_are_refused():
    assert rle_area(polygons_to_rle([], 10, 10)) == 0
    assert rle_area(polygons_to_rle([[1.0, 1.0, 5.0, 5.0]], 10, 10)) == 0
    with pytest.raises(DataError, match="x, y pairs"):
        polygons_to_rle([[1.0, 1.0, 5.0, 5.0, 7.0]], 10, 10)
    with pytest.raises(DataError, match="far outside"):
        polygons_to_rle([[1.0, 1.0, 5.0, 1e9, 7.0, 2.0]], 10, 10)
    with pytest.raises(DataError, match="finite"):
        polygons_to_rle([[1.0, 1.0, 5.0, float("nan"), 7.0, 2.0]], 10, 10)


def test_run_lengths_of_another_size_are_refused():
    counts = encode_mask(np.ones((8, 8), bool)).counts
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_mask(RLE((3, 3), counts))
