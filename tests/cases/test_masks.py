"""Masks with wrong sizes or run lengths never reach the C code, which would crash or hang."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refcli.contracts.example import RLE
from refcli.errors import DataError, ExitCode
from refcli.geometry.masks import (
    check_run_lengths,
    decode_mask,
    encode_mask,
    mask_box,
    polygons_to_rle,
    rle_area,
    rle_intersection,
    runs_to_rle,
    union_masks,
)

GOOD = encode_mask(np.eye(20, dtype=bool))
SIDE = 2_000_000_000


def compressed(*runs: int) -> bytes:
    """Run lengths in COCO's text form, valid or not."""
    counts = bytearray()
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            more = value != (-1 if digit & 0x10 else 0)
            counts.append(48 + (digit | 0x20 if more else digit))
    return bytes(counts)


DAMAGED = {
    "nothing": b"",
    "too short": compressed(100, 50),
    "too long": compressed(100, 5000),
    "negative": compressed(100, -50, 350),
    "a run of exabytes": compressed(0, 1 << 58),
    "a number of too many digits": b"o" * 40,
    "cut off": GOOD.counts[:-1] + b"o",
    "no digits": b"\xff\x00 ",
    "one byte changed": bytes([GOOD.counts[0] ^ 1]) + GOOD.counts[1:],
}


@pytest.mark.parametrize("counts", DAMAGED.values(), ids=DAMAGED)
def test_every_function_that_takes_masks_refuses_a_damaged_one(counts):
    mask = RLE((20, 20), counts)
    for use in (decode_mask, rle_area, mask_box, check_run_lengths):
        with pytest.raises(DataError):
            use(mask)
    for pair in ([GOOD, mask], [mask, GOOD]):
        with pytest.raises(DataError):
            union_masks(pair)
        with pytest.raises(DataError):
            rle_intersection(*pair)


@pytest.mark.parametrize("size", [(0, 20), (20, 0), (-1, -400), (50_000_000, 50_000_000), (SIDE, SIDE), (1 << 40, 1)])
def test_a_mask_of_an_impossible_size_is_refused(size):
    for counts in (GOOD.counts, b"", compressed(400)):
        for use in (decode_mask, rle_area, mask_box, check_run_lengths):
            with pytest.raises(DataError):
                use(RLE(size, counts))
    with pytest.raises(DataError):
        polygons_to_rle([[0, 0, 1.9e9, 0, 1.9e9, 1.9e9]], *size)
    with pytest.raises(DataError):
        runs_to_rle([size[0] * size[1]], *size)


def test_empty_runs_between_others_change_no_pixel():
    """pycocotools stops at two runs that end together, and then joins masks that its next reader never finishes."""
    for runs in itertools.product((0, 2, 4), repeat=5):
        if sum(runs) != 8:
            continue
        pixels = np.repeat(np.arange(5) % 2 == 1, runs).reshape(2, 4).T
        mask = RLE((4, 2), compressed(*runs))
        other = RLE((4, 2), compressed(2, 0, 2, 0, 0, 4))
        others = np.repeat([False, True], 4).reshape(2, 4).T
        np.testing.assert_array_equal(decode_mask(mask), pixels)
        assert rle_area(mask) == pixels.sum()
        assert rle_intersection(mask, other) == (pixels & others).sum()
        np.testing.assert_array_equal(decode_mask(union_masks([mask, other, mask])), pixels | others)
        assert mask_box(mask) == mask_box(encode_mask(pixels))


@pytest.mark.parametrize(
    "polygon",
    [
        [0, 0, math.nan, 5, 5, 5],
        [0, 0, math.inf, 5, 5, 5],
        [0, 0, 1e300, 5, 5, 5],
        [0, 0, -(10**400), 5, 5, 5],
        [0, 0, 1000, 1000, 5, 5, 9],
        [0, 0, 190, 190] * 5_000,
    ],
)
def test_a_polygon_that_is_not_an_outline_in_the_image_is_refused(polygon):
    with pytest.raises(DataError):
        polygons_to_rle([polygon], 20, 20)


def test_a_polygon_of_very_many_points_is_drawn():
    angles = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = np.stack([250 + 200 * np.cos(angles), 250 + 200 * np.sin(angles)], axis=1).ravel().tolist()
    assert rle_area(polygons_to_rle([circle] * 20, 500, 500)) == pytest.approx(np.pi * 200**2, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"width": SIDE, "height": SIDE, "segmentation": [[0, 0, 1.9e9, 0, 1.9e9, 1.9e9]]},
        {"width": 50_000_000, "height": 50_000_000, "segmentation": [[0, 0, 4e7, 0, 4e7, 4e7]]},
        {"width": 100, "height": 80, "segmentation": {"size": [80, 100], "counts": [100, 50]}},
        {"width": 100, "height": 80, "segmentation": {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}},
        {"width": SIDE, "height": SIDE, "segmentation": {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}},
    ],
)
def test_a_line_with_a_damaged_mask_is_listed_and_the_others_stay(tmp_path, refcli, fields):
    good = {"image": "b.jpg", "expression": "the red cup", "width": 100, "height": 80, "box": [1, 2, 30, 40]}
    lines = [{"image": "a.jpg", "expression": "x", **fields}, good]
    (tmp_path / "mine_train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = refcli(
        "prepare-data", "--from", tmp_path / "mine_train.jsonl", "--name", "m", "--out", tmp_path / "st"
    )
    assert code in (ExitCode.OK, ExitCode.PARTIAL), err
    assert "unreadable mask: 1" in err
    assert pq.read_table(tmp_path / "st" / "m" / "train.parquet").num_rows == 1


def test_one_damaged_byte_in_a_mask_of_a_store_ends_an_evaluation_at_once(tmp_path, refcli):
    good = {"image": "b.jpg", "expression": "x", "width": 20, "height": 20, "box": [0, 0, 20, 20], "id": "b"}
    counts = GOOD.counts.decode()
    lines = json.dumps(good | {"segmentation": {"size": [20, 20], "counts": counts}})
    (tmp_path / "mine_test.jsonl").write_text(lines)
    refcli("prepare-data", "--from", tmp_path / "mine_test.jsonl", "--name", "m", "--out", tmp_path / "st")
    path = next((tmp_path / "st").rglob("*.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    damaged = DAMAGED["too short"]
    names = [name for name in rows[0]["regions"][0] if isinstance(rows[0]["regions"][0][name], bytes)]
    for name in names:
        rows[0]["regions"][0][name] = damaged
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    mask = {"size": [20, 20], "counts": counts}
    target = {"box_xyxy": [0, 0, 20, 20], "score": 1.0, "mask": mask}
    answer = {"schema": "refcli.prediction/1", "id": rows[0]["id"], "width": 20, "height": 20, "targets": [target]}
    (tmp_path / "p.jsonl").write_text(json.dumps(answer | {"no_target": False, "existence": 1.0}))
    code, _, err = refcli(
        "evaluate", "--predictions", tmp_path / "p.jsonl", "--data", tmp_path / "st", "--split", "m:test"
    )
    assert names
    assert code == ExitCode.INTEGRITY, err
    assert "unexpected" not in err
