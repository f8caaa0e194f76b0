"""ODVG lines become one record per phrase, with every box of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from refcli.data.sources.odvg import SOURCE, OdvgSettings, sniff_odvg
from refcli.data.sources.record import Problems, RawRecord
from refcli.errors import DataError


def write(folder: Path, *lines: dict | str) -> Path:
    path = folder / "my_train.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def read(path: Path, problems: Problems | None = None, **settings) -> list[RawRecord]:
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"train": path}, OdvgSettings(**settings), dataset="mine", problems=problems))


def meanings(records: list[RawRecord]) -> dict[str, list[tuple[float, ...] | None]]:
    return {record.expressions[0].text: [region.box_xyxy for region in record.regions] for record in records}


def grounding(*regions: dict) -> dict:
    return {
        "filename": "2405116.jpg",
        "height": 375,
        "width": 500,
        "grounding": {"caption": "Two surfers. sand on the beach.", "regions": list(regions)},
    }


def detection(*instances: dict) -> dict:
    return {"filename": "shelf/1.jpg", "height": 10, "width": 20, "detection": {"instances": list(instances)}}


SURFERS = {"bbox": [206, 156, 282, 248], "phrase": "Two surfers", "tokens_positive": [[0, 3], [4, 11]]}
BEACH = {"bbox": [[327.5, 223, 421, 282], [300, 200, 400, 210]], "phrase": "beach"}
CAR = {"bbox": [1, 2, 3, 4], "label": 8, "category": "car"}


def test_a_region_has_one_box_or_several_and_they_are_corners(tmp_path):
    records = read(write(tmp_path, grounding(SURFERS, BEACH)))
    assert meanings(records) == {
        "Two surfers": [(206, 156, 282, 248)],
        "beach": [(327.5, 223, 421, 282), (300, 200, 400, 210)],
    }
    assert records[0].image.key == "mine:2405116.jpg"
    assert (records[0].image.width, records[0].image.height) == (500, 375)
    assert records[0].split == "train"
    assert len({record.expressions[0].id for record in records}) == 2


def test_equal_phrases_of_an_image_are_one_with_all_distinct_boxes(tmp_path):
    again = {"bbox": [[0, 0, 9, 9], [206, 156, 282, 248]], "phrase": " two Surfers "}
    assert meanings(read(write(tmp_path, grounding(SURFERS, again)))) == {
        "Two surfers": [(206, 156, 282, 248), (0, 0, 9, 9)]
    }


def test_the_phrases_of_a_list_refer_to_the_same_boxes(tmp_path):
    both = {"bbox": [0, 0, 9, 9], "phrase": ["one man", "a guy"]}
    assert meanings(read(write(tmp_path, grounding(both)))) == {"one man": [(0, 0, 9, 9)], "a guy": [(0, 0, 9, 9)]}


def test_coco_names_are_coco_images(tmp_path):
    line = grounding(SURFERS) | {"filename": "train2014/COCO_train2014_000000000009.jpg"}
    (record,) = read(write(tmp_path, line))
    assert record.image.key == "coco:9"
    assert record.image.names[0] == "train2014/COCO_train2014_000000000009.jpg"


def test_detection_is_read_only_on_request_and_counted_otherwise(tmp_path):
    bus, van = CAR | {"category": "bus"}, CAR | {"bbox": [5, 5, 9, 9]}
    nameless = {"bbox": [1, 1, 2, 2], "label": 3}
    path = write(tmp_path, grounding(SURFERS), detection(CAR, bus, van, nameless))
    problems = Problems()
    assert meanings(read(path, problems)) == {"Two surfers": [(206, 156, 282, 248)]}
    assert problems.counts == {"left_out_detection": 1}
    problems = Problems()
    records = read(path, problems, detection=True)
    assert meanings(records[1:]) == {"car": [(1, 2, 3, 4), (5, 5, 9, 9)], "bus": [(1, 2, 3, 4)]}
    assert [record.kind for record in records] == [None, "category", "category"]
    assert problems.counts == {"instance_without_category": 1}


def test_a_file_of_detection_alone_is_refused_with_the_setting_to_use(tmp_path):
    with pytest.raises(DataError, match="detection to true"):
        read(write(tmp_path, detection(CAR)))


@pytest.mark.parametrize(
    "broken",
    [
        '{"filename": "a.jpg", ',
        "[]",
        '{"height": 3}',
        json.dumps({"filename": "a.jpg"}),
        json.dumps(grounding({"bbox": [1, 2, 3], "phrase": "x"})),
        json.dumps(grounding({"bbox": [[1, 2, 3, 4], 5], "phrase": "x"})),
        json.dumps(grounding({"bbox": [], "phrase": "x"})),
        json.dumps(grounding({"bbox": [0.1, 0.2, 0.5, 1], "phrase": "x"})),
        json.dumps(grounding({"bbox": [1, 2, 3, 4]})),
        "[" * 100_000,
    ],
)
def test_a_broken_line_is_reported_and_the_others_are_read(tmp_path, broken):
    problems = Problems()
    records = read(write(tmp_path, grounding(SURFERS), broken, "", grounding(BEACH)), problems)
    assert list(meanings(records)) == ["Two surfers", "beach"]
    assert problems.counts == {"broken_line": 1}
    assert problems.places["broken_line"][0].startswith("my_train.jsonl: line 2: ")


def test_a_file_of_broken_lines_or_of_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no line can be used.*\n.*line 1"):
        read(write(tmp_path, "{", "["))
    with pytest.raises(DataError, match="empty"):
        read(write(tmp_path, " "))


def test_an_image_without_phrases_is_counted(tmp_path):
    problems = Problems()
    read(write(tmp_path, grounding(), grounding(SURFERS)), problems)
    assert problems.counts == {"image_without_phrase": 1}


def test_sniff_recognises_both_kinds_plain_and_gzipped(tmp_path):
    for line in (grounding(SURFERS), detection(CAR)):
        path = write(tmp_path, line, line)
        assert sniff_odvg(path)
        packed = tmp_path / "packed.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert sniff_odvg(packed)
        assert [record.regions for record in read(packed, detection=True)] == [
            record.regions for record in read(path, detection=True)
        ]
    assert not sniff_odvg(write(tmp_path, {"image": "a.jpg", "expression": "x", "box": [1, 2, 3, 4]}))


def test_templates_read_the_detection_labels_of_a_line_or_none_of_them(tmp_path):
    cup, spoon = {"bbox": [1, 2, 30, 40], "label": 0, "category": "cup"}, {"bbox": [5, 6, 30, 40], "label": 1}
    whole = detection(cup, spoon)
    problems = Problems()
    path = write(tmp_path, grounding({"bbox": [1, 2, 3, 4], "phrase": "sand"}), whole, detection(cup, {"bbox": [1]}))
    (record,) = read(path, problems, expressions="template")
    assert record.needs_expressions
    assert [(one.category, one.box_xyxy) for one in record.regions] == [("cup", (1, 2, 30, 40)), (None, (5, 6, 30, 40))]
    assert problems.counts["broken_line"] == 1
