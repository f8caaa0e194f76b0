"""A user's own lines are read as documented, and invalid lines are reported."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from refcli.data.sources import jsonl
from refcli.data.sources.jsonl import KEYS, SOURCE, JsonlSettings, sniff_jsonl
from refcli.data.sources.record import Problems, RawRecord
from refcli.errors import DataError

GOOD = {"image": "a.jpg", "expression": "the red cup", "box": [10, 20, 110, 220.5]}
POLYGON = [[1, 1, 5, 1, 5, 5]]
RUNS = {"size": [8, 10], "counts": [80]}


def write(folder: Path, *lines: dict | str, name: str = "my.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def read(path: Path, problems: Problems | None = None, split: str = "train") -> list[RawRecord]:
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({split: path}, JsonlSettings(), dataset="mine", problems=problems))


def one(folder: Path, **fields) -> RawRecord:
    line = {"image": "a.jpg", "expression": "the cup"} | fields
    (record,) = read(write(folder, {key: value for key, value in line.items() if value is not None}))
    return record


def test_the_smallest_line_is_one_expression_with_one_box(tmp_path):
    (record,) = read(write(tmp_path, GOOD))
    assert record.expressions[0].text == "the red cup"
    assert record.regions[0].box_xyxy == (10, 20, 110, 220.5)
    assert record.split == "train"
    assert record.image.key == "mine:a.jpg"
    assert record.image.names == ("a.jpg",)
    assert record.where == "my.jsonl: line 1"


def test_the_examples_of_the_documentation_are_read(tmp_path):
    lines = [line.strip() for line in str(jsonl.__doc__).splitlines() if line.startswith('    {"image"')]
    records = read(write(tmp_path, *lines))
    assert [len(record.regions) for record in records] == [1, 2, 0]
    assert len(records[1].expressions) == 2


def test_all_ways_to_write_boxes_agree(tmp_path):
    ways = [
        {"box": [1, 2, 4, 6]},
        {"box_xywh": [1, 2, 3, 4]},
        {"boxes": [[1, 2, 4, 6]]},
        {"boxes_xywh": [[1, 2, 3, 4]]},
    ]
    assert {one(tmp_path, **way).regions[0].box_xyxy for way in ways} == {(1, 2, 4, 6)}


def test_segmentations_belong_to_their_boxes_and_stay_undecoded(tmp_path):
    single = one(tmp_path, box=[1, 1, 5, 5], segmentation=POLYGON).regions[0]
    assert isinstance(single.segmentation, bytes)
    assert json.loads(single.segmentation) == POLYGON
    alone = one(tmp_path, segmentation=RUNS).regions[0]
    assert alone.box_xyxy is None
    assert json.loads(alone.segmentation) == RUNS
    boxes = [[1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]]
    first, second, third = one(tmp_path, boxes=boxes, segmentation=[POLYGON, None, RUNS]).regions
    assert json.loads(first.segmentation) == POLYGON
    assert second.segmentation is None
    assert json.loads(third.segmentation) == RUNS


def test_no_target_must_be_stated(tmp_path):
    assert one(tmp_path, no_target=True).regions == ()
    assert one(tmp_path, no_target=True, boxes=[]).regions == ()
    for missing in ({}, {"boxes": []}, {"box": None}, {"no_target": False}):
        with pytest.raises(DataError, match="no_target"):
            one(tmp_path, **missing)


def test_optional_keys_are_obeyed(tmp_path):
    record = one(
        tmp_path,
        box=[1, 2, 4, 6],
        id=17,
        split="testA",
        width=640,
        height=480,
        image_id="cam3-frame7",
        kind="ordinal",
    )
    assert record.expressions[0].id == "17"
    assert (record.split, record.kind) == ("testA", "ordinal")
    assert (record.image.width, record.image.height) == (640, 480)
    assert record.image.key == "mine:cam3-frame7"
    assert one(tmp_path, box=[1, 2, 4, 6], image_id="coco:9").image.key == "coco:9"


def test_coco_names_are_coco_images_but_the_given_name_comes_first(tmp_path):
    image = one(tmp_path, image="shots\\COCO_train2014_000000000009.jpg", box=[1, 2, 4, 6]).image
    assert image.key == "coco:9"
    assert image.names[0] == "shots/COCO_train2014_000000000009.jpg"
    assert "000000000009.jpg" in image.names


def test_several_expressions_have_different_ids_and_the_same_regions(tmp_path):
    record = one(tmp_path, expression=None, expressions=["both", "the two"], boxes=[[1, 1, 5, 5], [6, 6, 9, 9]])
    assert [text for _, text in record.expressions] == ["both", "the two"]
    assert len({identity for identity, _ in record.expressions}) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg", ', "not valid JSON"),
        ("[1, 2]", "unexpected shape"),
        ({"expression": "x", "box": [1, 2, 3, 4]}, "image"),
        ({"image": " ", "expression": "x", "box": [1, 2, 3, 4]}, "image is empty"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4]}, "either expression or expressions"),
        (GOOD | {"expressions": ["x"]}, "either expression or expressions"),
        ({"image": "a.jpg", "expressions": [], "box": [1, 2, 3, 4]}, "expressions is empty"),
        ({"image": "a.jpg", "expression": "x", "bbox": [1, 2, 3, 4]}, "did you mean 'box'"),
        (GOOD | {"heigth": 3}, "did you mean 'height'"),
        (GOOD | {"schema": "refcli.prediction/1"}, "the key 'schema' is unknown"),
        (GOOD | {"box": [1, 2, 3]}, "length 4"),
        (GOOD | {"boxes": [[1, 2, 3, 4]]}, "box and boxes are both given"),
        (GOOD | {"no_target": True}, "there is a target"),
        (GOOD | {"box": [0.1, 0.2, 0.5, 1]}, "in fractions of the image"),
        (GOOD | {"width": -7}, "width is -7"),
        (GOOD | {"id": ""}, "id is empty"),
        ({"image": "a.jpg", "expression": "x", "boxes": [[1, 2, 3, 4]], "segmentation": []}, "0 segmentations"),
        ({"image": "a.jpg", "expression": "x", "boxes": [[1, 2, 3, 4]], "segmentation": 3}, "unexpected shape"),
        (GOOD | {"id": "first"}, "already given"),
    ],
)
def test_a_broken_line_is_reported_with_its_fault_and_the_others_are_read(tmp_path, line, message):
    problems = Problems()
    path = write(tmp_path, GOOD | {"id": "first"}, line, "", GOOD)
    assert len(read(path, problems)) == 2
    assert problems.counts == {"broken_line": 1}
    (place,) = problems.places["broken_line"]
    assert place.startswith("my.jsonl: line 2: ")
    assert message in place


def test_a_file_without_one_good_line_is_refused_with_its_first_fault(tmp_path):
    with pytest.raises(DataError, match=r"the key 'boxs' is unknown(.|\n)*line 1(.|\n)*'box"):
        read(write(tmp_path, {"image": "a.jpg", "expression": "x", "boxs": [1, 2, 3, 4]}))


def test_two_files_may_hold_lines_of_one_split(tmp_path):
    first = write(tmp_path, GOOD | {"split": "test"}, name="a.jsonl")
    second = write(tmp_path, GOOD | {"split": "test"}, name="b.jsonl.gz")
    second.write_bytes(gzip.compress(second.read_bytes()))
    records = list(SOURCE.read({"train": first, "val": second}, JsonlSettings(), dataset="mine", problems=Problems()))
    assert [record.split for record in records] == ["test", "test"]
    assert records[0].expressions[0].id != records[1].expressions[0].id


def test_an_id_may_recur_only_in_another_split(tmp_path):
    several = {"image": "a.jpg", "expressions": ["x", "y"], "no_target": True}
    problems = Problems()
    lines = [
        several | {"id": "a"},
        GOOD | {"id": "a/1"},
        GOOD | {"id": "a/1", "split": "val"},
        GOOD | {"id": "train/5"},
    ]
    records = read(write(tmp_path, *lines, GOOD), problems)
    assert [record.where for record in records] == ["my.jsonl: line 1", "my.jsonl: line 3", "my.jsonl: line 4"]
    assert [place.split(" (")[0] for place in problems.places["broken_line"]] == [
        "my.jsonl: line 2: the id 'a/1' was already given",
        "my.jsonl: line 5: the id 'train/5' was already given",
    ]


def test_lines_without_ids_leave_nothing_in_memory(tmp_path):
    path = write(tmp_path, *[GOOD] * 3_000)
    records = SOURCE.read({"train": path}, JsonlSettings(), dataset="mine", problems=Problems())
    next(records)
    tracemalloc.start()
    try:
        num_records = sum(1 for _ in records)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_records == 2_999
    assert peak < 2_999 * 50  # bytes; storing ids and places would take several hundred per line


def test_the_documentation_names_every_key():
    assert all(f"`{key}`" in str(jsonl.__doc__) for key in KEYS)


def test_sniff_requires_an_image_and_an_expression(tmp_path):
    assert sniff_jsonl(write(tmp_path, GOOD))
    assert sniff_jsonl(write(tmp_path, {"image": "a.jpg", "expressions": ["x"], "no_target": True}))
    assert not sniff_jsonl(write(tmp_path, GOOD | {"schema": "refcli.prediction/1"}))
    assert not sniff_jsonl(write(tmp_path, {"image": "a.jpg", "conversations": []}))
    assert not sniff_jsonl(write(tmp_path, '{"image": "a.jpg", "expression": "x",', "}"))
    assert not sniff_jsonl(tmp_path)
