"""YOLO folders: where images and labels are, what a line means, and which lines are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora.json_sets import LEFT, RIGHT
from corpora.label_tools import write_yolo, yolo_box, yolo_polygon

from refcli.data.preparation.plan import plan_file
from refcli.data.sources.detect import detect_format
from refcli.data.sources.record import Problems
from refcli.data.sources.yolo import SOURCE, label_file
from refcli.data.store.read import Store
from refcli.errors import DataError
from refcli.recipes.prepare_data import Preparation, prepare

DATA = {"train": "images", "names": ["cup", "plate"]}


def read(path, problems=None, root=None, **settings):
    files = {"data": path} | ({"root": root} if root else {})
    problems = Problems() if problems is None else problems
    return list(SOURCE.read(files, SOURCE.settings(**settings), dataset="mine", problems=problems))


def found(records):
    return {record.expressions[0].text: [one.box_xyxy for one in record.regions] for record in records}


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("set/images/train/a.jpg", "set/labels/train/a.txt"),
        ("images/set/images/a.b.png", "images/set/labels/a.b.txt"),
        ("set/train/a.jpg", "set/train/a.txt"),
    ],
)
def test_the_labels_are_in_the_folder_labels_instead_of_the_last_folder_images(image, labels):
    assert label_file(Path(image)) == Path(labels)


def test_an_image_with_an_empty_label_file_has_no_objects_and_one_without_a_file_is_unlabelled(tmp_path):
    path = write_yolo(tmp_path, DATA, {"a": yolo_box(0, LEFT), "b": "", "c": ""})
    (tmp_path / "labels/c.txt").unlink()
    problems = Problems()

    records = read(path, problems, expressions="template")

    assert [(one.image.key, [each.box_xyxy for each in one.regions]) for one in records] == [
        ("mine:images/a.jpg", [pytest.approx(LEFT)]),
        ("mine:images/b.jpg", []),
    ]
    assert problems.counts == {"image_without_label_file": 1}


@pytest.mark.parametrize("entry", ["images", "./images", "../images", ["images/a.jpg", "images/b.jpg"], "list.txt"])
def test_a_split_is_a_folder_images_or_a_list_also_one_folder_too_high_as_roboflow_writes_it(tmp_path, entry):
    (tmp_path / "list.txt").write_text("./images/a.jpg\nimages/b.jpg\n")
    path = write_yolo(tmp_path, DATA | {"train": entry}, {"a": yolo_box(0, LEFT), "b": yolo_box(1, RIGHT)})

    assert found(read(path)) == {"cup": [pytest.approx(LEFT)], "plate": [pytest.approx(RIGHT)]}


def test_paths_outside_the_root_are_refused_unless_the_root_is_given(tmp_path):
    inner = tmp_path / "yaml"
    write_yolo(tmp_path, {}, {"a": yolo_box(0, LEFT)})
    path = write_yolo(inner, DATA | {"path": "/nowhere", "train": str(tmp_path / "images")}, {})

    with pytest.raises(DataError, match="is not in the folder"):
        read(path)
    assert found(read(path, root=tmp_path)) == {"cup": [pytest.approx(LEFT)]}


def test_images_of_two_splits_belong_to_the_first(tmp_path):
    problems = Problems()
    path = write_yolo(tmp_path, DATA | {"val": "images", "test": "none"}, {"a": yolo_box(0, LEFT)})

    assert [record.split for record in read(path, problems)] == ["train"]
    assert problems.counts == {"repeated_image": 1, "split_without_images": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1 0.9", "the last may be a confidence"),
        ("0 30 40 20 20", "not fractions of the image"),
        ("0 0.5 x 0.1 0.1", "a number cannot be read"),
        ("0 nan 0.5 0.1 0.1", "not fractions of the image"),
        ("0 0.1 0.1", "there are 2 numbers"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of the 2 names"),
    ],
)
def test_a_broken_line_leaves_its_class_out_of_the_image(tmp_path, line, message):
    path = write_yolo(tmp_path, DATA, {"a": line + "\n" + yolo_box(0, LEFT) + yolo_box(1, RIGHT)})
    problems = Problems()

    records = read(path, problems)

    assert message in problems.places["broken_line"][0]
    assert list(found(records)) == ([] if line.startswith("2") else ["plate"])


def test_polygons_of_four_corners_are_reported_and_can_be_read_as_boxes_around_oriented_boxes(tmp_path):
    diamond = yolo_polygon(0, (50, 20), (70, 40), (50, 60), (30, 40))
    path = write_yolo(tmp_path, DATA, {"a": diamond})
    problems = Problems()

    (mask,), (box,) = (read(path, problems, polygons=form)[0].regions for form in ("masks", "boxes"))

    assert mask.box_xyxy == box.box_xyxy == pytest.approx((30, 20, 70, 60))
    assert (mask.segmentation is None, box.segmentation) == (False, None)
    assert problems.counts == {"polygons_of_four_corners": 1}


def test_a_changed_label_file_is_read_again(tmp_path):
    path = write_yolo(tmp_path / "set", DATA, {"a": yolo_box(0, LEFT)})
    plan, preparation = plan_file(path, name="mine"), Preparation(out=tmp_path / "store")

    first, again = prepare(plan, preparation), prepare(plan, preparation)
    (tmp_path / "set/labels/a.txt").write_text(yolo_box(0, LEFT) + yolo_box(1, RIGHT))
    changed = prepare(plan, preparation)

    assert (again.status, changed.status) == ("unchanged", first.status)
    assert len(Store(tmp_path / "store").split("mine:train")) == 2


def test_a_folder_of_a_labelling_tool_has_a_list_of_classes_instead_of_data(tmp_path):
    write_yolo(tmp_path, DATA, {"a": yolo_box(2, LEFT)}).unlink()
    (tmp_path / "classes.txt").write_text("cup\n\nthe plate\n")

    assert detect_format(tmp_path) == "yolo"
    assert found(read(tmp_path)) == {"the plate": [pytest.approx(LEFT)]}


def test_data_may_start_with_a_byte_order_mark(tmp_path):
    path = write_yolo(tmp_path, DATA, {"a": yolo_box(1, LEFT)})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert detect_format(path) == "yolo"
    assert found(read(path)) == {"plate": [pytest.approx(LEFT)]}


def test_key_points_after_a_box_are_not_taken_for_a_polygon(tmp_path):
    line = yolo_box(0, LEFT).strip() + " 0.1 0.1 2 0.2 0.2 2\n"
    path = write_yolo(tmp_path, DATA | {"kpt_shape": [2, 3]}, {"a": line})

    (record,) = read(path)

    assert record.regions[0].box_xyxy == pytest.approx(LEFT)
    assert record.regions[0].segmentation is None
