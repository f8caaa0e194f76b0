"""Reading the lists of TransVG and OneRef."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pth_lists import (
    COCO,
    FLICKR,
    MIXUP_FLICKR,
    MIXUP_REFERIT,
    ONEREF,
    POLYGONS,
    REFERIT,
    TRANSVG,
    annotation,
    instances_of,
    legacy,
    read,
)

from refcli.data.sources.pth.reader import SOURCE, PthSettings
from refcli.data.sources.record import Problems
from refcli.errors import DataError


def test_a_transvg_tuple_is_its_annotation_of_a_coco_image(tmp_path: Path):
    (record,), problems = read(tmp_path, [TRANSVG])
    assert record.split == "val"
    assert record.image.key == "coco:508281"
    assert COCO in record.image.names and "000000508281.jpg" in record.image.names
    assert [(one.id, one.text) for one in record.expressions] == [("0", "lower left boy")]
    (region,) = record.regions
    assert region.box_xyxy == (300.5, 20.0, 310.75, 50.0)
    assert region.source_id == "coco:511688"
    assert region.segmentation is None
    assert record.where == "set_val.pth: tuple 0"
    assert not problems.counts


def test_a_transvg_tuple_gets_mask_and_size_from_the_instances_file(tmp_path: Path):
    (record,), problems = read(tmp_path, [TRANSVG], instances=instances_of(annotation(511688), annotation(7)))
    assert (record.image.width, record.image.height) == (640, 480)
    assert json.loads(record.regions[0].segmentation) == POLYGONS
    assert not problems.counts


def test_an_annotation_that_is_missing_or_has_another_box_gives_no_mask_and_is_reported(tmp_path: Path):
    other_box = annotation(511688, box=[300.5, 20.0, 10.3, 30.0])
    for annotations, kind in (((annotation(7),), "annotation_not_found"), ((other_box,), "box_differs_from_instances")):
        (record,), problems = read(tmp_path, [TRANSVG], instances=instances_of(*annotations))
        assert record.regions[0].segmentation is None
        assert record.regions[0].source_id == "coco:511688"
        assert problems.counts == Counter({kind: 1})
        assert problems.places[kind][0].startswith("set_val.pth: tuple 0")


def test_an_annotation_of_another_image_is_a_contradiction(tmp_path: Path):
    with pytest.raises(DataError, match="annotation 511688 is of image 1, the tuple's image is 508281"):
        read(tmp_path, [TRANSVG], instances=instances_of(annotation(511688, image=1)))


def test_a_oneref_tuple_has_its_image_size_and_polygons(tmp_path: Path):
    (record,), problems = read(tmp_path, [ONEREF])
    assert record.image.key == "coco:508281"
    assert (record.image.width, record.image.height) == (640, 480)
    assert record.regions[0].box_xyxy == (300.5, 20.0, 310.75, 50.0)
    assert json.loads(record.regions[0].segmentation) == POLYGONS
    assert record.regions[0].source_id is None
    assert not problems.counts


def test_a_oneref_tuple_finds_its_annotation_by_the_box_if_only_one_has_it(tmp_path: Path):
    near = annotation(8, box=[300.51, 20.0, 10.25, 30.0])
    elsewhere = annotation(9, image=4)
    (record,), problems = read(tmp_path, [ONEREF], instances=instances_of(annotation(511688), near, elsewhere))
    assert record.regions[0].source_id == "coco:511688"
    assert not problems.counts
    (record,), problems = read(tmp_path, [ONEREF], instances=instances_of(annotation(511688), annotation(12)))
    assert record.regions[0].source_id is None
    assert json.loads(record.regions[0].segmentation) == POLYGONS
    assert problems.counts == Counter(annotation_not_found=1)


def test_a_box_that_is_not_finite_is_left_to_the_preparation(tmp_path: Path):
    row = (COCO, ONEREF[1], [float("nan"), 0.0, float("inf"), 1e308], "boy", [])
    records, problems = read(tmp_path, [ONEREF, row], instances=instances_of(annotation(511688)))
    assert str(records[1].regions[0].box_xyxy) == "(nan, 0.0, nan, 1e+308)"
    assert problems.counts == Counter(annotation_not_found=1)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({"size": [480, 640], "counts": b"abc"}, {"size": [480, 640], "counts": "abc"}),
        ({"size": [480, 640], "counts": [5, 3]}, {"size": [480, 640], "counts": [5, 3]}),
        ([{"size": [4, 6], "counts": "abc"}], [{"size": [4, 6], "counts": "abc"}]),
        ([(1, 2, 3, 4, 5, 6.5)], [[1, 2, 3, 4, 5, 6.5]]),
    ],
)
def test_run_lengths_and_polygons_are_passed_on_as_json(tmp_path: Path, mask: object, expected: object):
    path = tmp_path / "a.pth"
    path.write_bytes(legacy([(*ONEREF[:4], mask)]))
    (record,) = SOURCE.read({"val": path}, PthSettings(), dataset="mine", problems=Problems())
    assert json.loads(record.regions[0].segmentation) == expected


@pytest.mark.parametrize("mask", [[("r1", ["boy"])], [[1.0, float("nan")]], {"size": [1, 1]}, [[1, 10**400]], 5])
def test_a_mask_of_an_unknown_form_is_reported_and_the_box_stays(tmp_path: Path, mask: object):
    (record,), problems = read(tmp_path, [(*ONEREF[:4], mask)])
    assert record.regions[0].segmentation is None
    assert record.regions[0].box_xyxy == (300.5, 20.0, 310.75, 50.0)
    assert problems.counts == Counter(unreadable_segmentation=1)


@pytest.mark.parametrize("mask", [[], None, "placeholder"])
def test_a_tuple_without_a_mask_is_not_reported(tmp_path: Path, mask: object):
    (record,), problems = read(tmp_path, [(*ONEREF[:4], mask)])
    assert record.regions[0].segmentation is None
    assert not problems.counts


def test_the_far_edges_of_referit_and_flickr_are_moved_out_by_one_pixel_unless_the_original_is_requested(
    tmp_path: Path,
):
    for row, box, key, source_id in (
        (REFERIT, (0.0, 10.0, 479.0, 99.0), "saiapr:8756", "saiapr:8756_2"),
        (FLICKR, (158.0, 0.0, 260.0, 372.0), "flickr30k:1000092795", None),
    ):
        (record,), problems = read(tmp_path, [row])
        assert record.regions[0].box_xyxy == (*box[:2], box[2] + 1, box[3] + 1)
        assert (record.image.key, record.regions[0].source_id) == (key, source_id)
        assert record.image.names == (row[0],)
        assert not problems.counts
        (record,), _ = read(tmp_path, [row], inclusive_boxes=False)
        assert record.regions[0].box_xyxy == box


@pytest.mark.parametrize("more", [(), (0.75,)], ids=["5 items", "6 items"])
def test_a_mixture_is_width_and_height_throughout_with_the_same_missing_pixel(tmp_path: Path, more: tuple[float, ...]):
    rows = [(*MIXUP_REFERIT, *more), (*ONEREF, *more), [*MIXUP_FLICKR, *more]]
    records, problems = read(tmp_path, rows)
    assert [one.image.key for one in records] == ["saiapr:8756", "coco:508281", "flickr30k:1000092795"]
    assert [one.regions[0].box_xyxy for one in records] == [
        (300.0, 10.0, 480.0, 100.0),
        (300.5, 20.0, 310.75, 50.0),
        (158.0, 0.0, 261.0, 373.0),
    ]
    assert [one.expressions[0].id for one in records] == ["0", "1", "2"]
    assert not problems.counts
    records, _ = read(tmp_path, rows, inclusive_boxes=False)
    assert records[0].regions[0].box_xyxy == (300.0, 10.0, 479.0, 99.0)
    assert records[1].regions[0].box_xyxy == (300.5, 20.0, 310.75, 50.0)


def test_tuples_in_a_row_about_one_box_are_one_record_and_the_order_stays(tmp_path: Path):
    other = (COCO, "3.pth", [4.0, 5.0, 3.0, 2.0], "dog", [])
    texts = ["boy", "Boy ", "boy"]
    rows = [*((*TRANSVG[:3], text, []) for text in texts), other, TRANSVG]
    records, _ = read(tmp_path, rows)
    assert [[one.id for one in record.expressions] for record in records] == [["0", "1", "2"], ["3"], ["4"]]
    assert [one.text for one in records[0].expressions] == texts
    assert [one.where for one in records] == [f"set_val.pth: tuple {index}" for index in (0, 3, 4)]
