"""Label Studio's export: which annotation counts, which objects are one, and what has no target."""

from __future__ import annotations

import numpy as np
import pytest
from corpora.json_sets import LEFT, RIGHT
from corpora.label_tools import box_result, brush_result, studio_annotation, studio_task, write_studio

from refcli.contracts.example import RLE
from refcli.data.preparation.finish import region_mask
from refcli.data.sources.label_studio import SOURCE
from refcli.data.sources.record import Problems
from refcli.errors import DataError
from refcli.geometry.brush_masks import brush_mask, brush_run_lengths
from refcli.geometry.masks import decode_mask, encode_mask, mask_box

SIZE = {"width": 100, "height": 80}


def read(folder, *tasks, problems=None, **settings):
    path = write_studio(folder / "export.json", tasks)
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"train": path}, SOURCE.settings(**settings), dataset="mine", problems=problems))


def found(records):
    return {record.expressions[0].text: [one.box_xyxy for one in record.regions] for record in records}


def test_an_expression_that_was_asked_and_has_no_region_has_no_target(tmp_path):
    asked = {"expressions": ["the cup", "the fork", "the  spoon"], **SIZE}
    tasks = (
        studio_task(1, studio_annotation(box_result(LEFT, "the cup"), box_result(RIGHT, "the spoon")), **asked),
        studio_task(2, studio_annotation(), **asked),
        studio_task(3, studio_annotation(), **SIZE),
        studio_task(4, **asked),
    )
    problems = Problems()

    records = read(tmp_path, *tasks, problems=problems)

    first, second = ([one for one in records if one.image.key == f"mine:photos/{number}.jpg"] for number in (1, 2))
    assert len(records) == len(first) + len(second)
    assert found(first) == {"the cup": [LEFT], "the spoon": [RIGHT], "the fork": []}
    assert found(second) == {"the cup": [], "the fork": [], "the  spoon": []}
    assert (first[0].image.width, second[0].image.width) == (100, 100)
    assert problems.counts == {"task_without_annotation": 1}


def test_class_names_say_nothing_about_expressions_that_were_asked(tmp_path):
    task = studio_task(1, studio_annotation(box_result(LEFT, "cup")), expressions=["the fork"])

    (category,) = read(tmp_path, task, expressions="category")
    (template,) = read(tmp_path, task, expressions="template")

    assert (category.expressions[0].text, category.kind) == ("cup", "category")
    assert template.needs_expressions
    assert [one.category for one in template.regions] == ["cup"]


def test_ground_truth_counts_before_the_latest_annotation_and_cancelled_ones_never(tmp_path):
    old = studio_annotation(box_result(LEFT, "old"), updated_at="2026-01-01T00:00:00Z")
    new = studio_annotation(box_result(LEFT, "new"), updated_at="2026-02-01T00:00:00Z")
    cancelled = studio_annotation(box_result(LEFT, "cancelled"), was_cancelled=True, ground_truth=True)
    problems = Problems()

    latest = read(tmp_path, studio_task(1, new, old, cancelled), problems=problems)
    certain = read(tmp_path, studio_task(1, new, old | {"ground_truth": True}, cancelled))

    assert list(found(latest)) == ["new"]
    assert list(found(certain)) == ["old"]
    assert problems.counts == {"several_annotations": 1}


def test_the_box_and_the_mask_of_one_answer_are_one_region_and_other_shapes_are_their_own(tmp_path):
    drawn = brush_result(RIGHT, "the cup", id="Xa3_-b")
    pair = box_result(LEFT, "the cup", id="box-4"), brush_result(LEFT, "the cup", id="mask-4")

    (record,) = read(tmp_path, studio_task(1, studio_annotation(*pair, drawn)))

    assert [one.box_xyxy for one in record.regions] == [LEFT, None]
    assert [mask_box(region_mask(one, 80, 100)) for one in record.regions] == [LEFT, RIGHT]


def test_a_polygon_in_percent_is_a_mask_and_its_extent_the_box(tmp_path):
    corners = [(10, 25), (30, 25), (30, 75), (10, 75)]
    value = {"points": corners, "closed": True, "polygonlabels": ["cup"]}
    polygon = box_result(LEFT, "cup") | {"type": "polygonlabels", "value": value}

    (record,) = read(tmp_path, studio_task(1, studio_annotation(polygon)))

    assert record.regions[0].box_xyxy == LEFT
    assert mask_box(region_mask(record.regions[0], 80, 100)) == LEFT


def rotated(result):
    return result | {"value": result["value"] | {"rotation": 30}}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (rotated(box_result(LEFT, "cup")), {"rotated_box": 1, "target_of_broken_object": 1}),
        (box_result(LEFT, "cup", image_rotation=90), {"rotated_box": 1, "target_of_broken_object": 1}),
        (box_result(LEFT, ""), {"broken_result": 1, "image_of_broken_object": 1}),
        (
            box_result(LEFT, "cup") | {"type": "ellipselabels", "value": {"radiusX": 3, "ellipselabels": ["cup"]}},
            {"broken_result": 1, "target_of_broken_object": 1},
        ),
        (box_result(LEFT, "plate", id="mask-1"), {"broken_result": 1, "target_of_broken_object": 2}),
    ],
)
def test_a_broken_region_leaves_its_expression_out_of_the_image(tmp_path, result, expected):
    problems = Problems()
    others = box_result(RIGHT, "cup", id="box-1"), box_result(RIGHT, "fork")

    records = read(tmp_path, studio_task(1, studio_annotation(*others, result), expressions=["cup"]), problems=problems)

    assert problems.counts == expected
    assert list(found(records)) == ([] if "image_of_broken_object" in expected else ["fork"])


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("/data/local-files/?d=a%20b/c.jpg", ("a b/c.jpg",)),
        ("https://host/photos/c%20d.jpg?token=1", ("photos/c d.jpg",)),
        ("/data/upload/3/0a1b2c3d-e.jpg", ("e.jpg",)),
        ("photos/f.jpg", ("photos/f.jpg",)),
    ],
)
def test_the_image_is_found_by_the_path_in_its_address(tmp_path, address, names):
    (record,) = read(tmp_path, studio_task(1, studio_annotation(box_result(LEFT, "cup")), image=address))

    assert record.image.names == names


def test_predictions_are_not_annotations(tmp_path):
    task = studio_task(1) | {"predictions": [{"result": [box_result(LEFT, "cup")]}]}

    with pytest.raises(DataError, match="no task has an annotation; 1 predictions are not read"):
        read(tmp_path, task)


def test_the_minimal_export_is_refused_and_the_error_names_the_right_one(tmp_path):
    row = {"image": "a.jpg", "box": [], "annotator": 1, "annotation_id": 2, "lead_time": 3.5}

    assert SOURCE.sniff(write_studio(tmp_path / "minimal.json", [row]))
    with pytest.raises(DataError, match="JSON-MIN"):
        read(tmp_path, row)


def test_brush_masks_are_read_as_they_were_written_also_with_values_that_do_not_repeat():
    bitmap = np.random.default_rng(0).random((37, 53)) > 0.5
    written = bytes(brush_run_lengths(encode_mask(bitmap)))

    assert (decode_mask(brush_mask(written, 53, 37)) == bitmap).all()
    for wrong in (written[:-3], written[:4], b""):
        with pytest.raises(DataError, match="truncated"):
            brush_mask(wrong, 53, 37)
    with pytest.raises(DataError, match="an image of 50 x 37 pixels has"):
        brush_mask(written, 50, 37)


def test_a_brush_mask_of_single_values_has_alpha_as_its_region():
    values = np.arange(1, 41, dtype=np.uint8).reshape(5, 2, 4)
    values[..., 3] *= np.array([[0, 1]] * 5, dtype=np.uint8)
    header = f"{values.size:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    block = f"0{2:02b}{values.size - 1:08b}" + "".join(f"{value:08b}" for value in values.ravel())
    bits = header + block
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")

    mask = brush_mask(packed, 2, 5)

    assert isinstance(mask, RLE)
    assert decode_mask(mask).tolist() == [[False, True]] * 5
