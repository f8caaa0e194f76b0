"""Every kind of COCO segmentation gives the same mask as pycocotools."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from refcli.contracts.example import RLE
from refcli.data.preparation.finish import region_mask
from refcli.data.sources.record import RawRegion
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask, encode_mask, polygons_to_rle

HEIGHT, WIDTH = 20, 30
SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
TRIANGLE = [20.5, 10.0, 28.0, 18.0, 15.0, 18.0]


def mask_of(value):
    return region_mask(RawRegion(None, json.dumps(value).encode()), HEIGHT, WIDTH)


def bitmap(rows, columns):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_polygons_are_united():
    assert mask_of([SQUARE, TRIANGLE]) == polygons_to_rle([SQUARE, TRIANGLE], HEIGHT, WIDTH)
    assert decode_mask(mask_of([SQUARE]))[3:9, 2:12].all()


def test_invalid_polygons_are_ignored_and_without_polygons_there_is_no_mask():
    assert mask_of([SQUARE, [1.0, 2.0, 3.0, 4.0], [*TRIANGLE, 5.0]]) == mask_of([SQUARE])
    assert mask_of([[1.0, 2.0, 3.0, 4.0]]) is None
    assert mask_of([]) is None
    assert region_mask(RawRegion(None, b""), HEIGHT, WIDTH) is None
    assert region_mask(RawRegion(None), HEIGHT, WIDTH) is None


def test_run_lengths_compressed_or_not_and_lists_of_them():
    first, second = bitmap((2, 7), (3, 9)), bitmap((5, 15), (8, 20))
    compressed = [encode_mask(first), encode_mask(second)]
    as_dicts = [{"size": list(rle.size), "counts": rle.counts.decode()} for rle in compressed]
    flat = first.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [True] if not flat[-1] else [False]]).astype(int)))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    counts = [int(count) for count in counts if count]
    assert mask_of({"size": [HEIGHT, WIDTH], "counts": counts}) == compressed[0]
    assert mask_of(as_dicts[1]) == compressed[1]
    assert (decode_mask(mask_of(as_dicts)) == (first | second)).all()


def test_a_mask_may_be_given_or_read_lazily():
    rle = encode_mask(bitmap((2, 7), (3, 9)))
    assert region_mask(RawRegion(None, rle), HEIGHT, WIDTH) == rle
    assert region_mask(RawRegion(None, lambda: rle), HEIGHT, WIDTH) == rle
    assert region_mask(RawRegion(None, lambda: None), HEIGHT, WIDTH) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[[1, 2", "cannot be read"),
        (b'{"size": [20, 30]}', "cannot be read"),
        (b'{"size": [20, 30], "counts": [5, 5]}', "10 pixels"),
        (b'[["a", "b", "c", "d", "e", "f"]]', "cannot be read"),
        (b"7", "cannot be read"),
        (b"[[1, 1, 9, 1, 9, 1e9]]", "far outside"),
        (b"[[1, 1, 9, 1, -301, 9]]", "far outside"),
        (b"[[1, 1, 9, 1, 9, 1" + b"0" * 400 + b"]]", "far outside"),
        (b'{"size": [20, 30], "counts": [-5, 605]}', "negative"),
        (b'{"size": [20, 30], "counts": [0.5, 599.5]}', "not a whole number"),
        (b'{"size": [20, 30], "counts": [true, 599]}', "not a whole number"),
        (b'{"size": [20, 30], "counts": [99999999999, 600]}', "100000000599 pixels"),
        (b'{"size": [1e999, 30], "counts": [600]}', "out of range"),
        (b'{"size": [20, 30], "counts": "11"}', "2 pixels"),
        (b'{"size": [20, 30], "counts": ""}', "0 pixels"),
        (b'{"size": [20, 30], "counts": "1\\u00e9"}', "damaged"),
        (b'{"size": [20, 30], "counts": "11!"}', "damaged"),
        (b'{"size": [20, 30], "counts": "' + b"o" * 99 + b'0"}', "damaged"),
        (b'{"size": [20, 30], "counts": "' + b"o" * 99 + b'"}', "cut off"),
        (b'{"size": [20, 30], "counts": "O"}', "negative"),
        (b'{"size": [20, 30], "counts": "hb0P"}', "cut off"),
        (b'{"size": [4, 4], "counts": [16]}', r"size \(4, 4\)"),
    ],
)
def test_an_invalid_segmentation_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        region_mask(RawRegion(None, text), HEIGHT, WIDTH)


def test_a_given_mask_whose_run_lengths_do_not_fill_it_is_refused():
    short = RLE((HEIGHT, WIDTH), encode_mask(np.ones((4, 4), dtype=bool)).counts)
    for given in (short, lambda: short):
        with pytest.raises(DataError, match="16 pixels"):
            region_mask(RawRegion(None, given), HEIGHT, WIDTH)


def test_masks_of_any_shape_are_unchanged():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.003, 0.5, 0.997, 1.0):
        mask = rng.random((240, 320)) < density
        text = {"size": [240, 320], "counts": encode_mask(mask).counts.decode()}
        read = region_mask(RawRegion(None, json.dumps(text).encode()), 240, 320)
        assert (decode_mask(read) == mask).all()


def test_polygons_may_extend_beyond_the_image():
    mask = mask_of([[-50.0, -50.0, 15.0, -50.0, 15.0, 250.0, -50.0, 250.0]])
    assert (decode_mask(mask) == bitmap((0, HEIGHT), (0, 15))).all()


def test_the_oracle_agrees_on_areas():
    truth = coco.area(coco.merge(coco.frPyObjects([SQUARE, TRIANGLE], HEIGHT, WIDTH)))
    assert decode_mask(mask_of([SQUARE, TRIANGLE])).sum() == truth
