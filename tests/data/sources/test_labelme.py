"""labelme's files: corners, masks, groups, and the shapes that are refused."""

from __future__ import annotations

import pytest
from corpora.json_sets import LEFT, RIGHT
from corpora.label_tools import labelme_mask, labelme_shape, write_labelme

from refcli.data.preparation.finish import region_mask
from refcli.data.sources.labelme import SOURCE
from refcli.data.sources.record import Problems
from refcli.geometry.masks import decode_mask, rle_area


def read(folder, problems=None):
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"train": folder}, SOURCE.settings(), dataset="mine", problems=problems))


def corners(box):
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)


def test_rectangles_have_two_corners_or_four_and_masks_their_place(tmp_path):
    shapes = [
        labelme_shape("cup", "rectangle", (30, 20), (10, 60)),
        labelme_shape("cup", "rectangle", *corners(RIGHT)),
        labelme_mask(LEFT, "plate"),
    ]

    cups, plate = read(write_labelme(tmp_path / "a", {"a": shapes}))

    assert [one.box_xyxy for one in cups.regions] == [LEFT, RIGHT]
    pixels = decode_mask(region_mask(plate.regions[0], 80, 100))
    assert not pixels[20, 10] and pixels[20:60, 10:30].sum() == pixels.sum() == 20 * 40 - 1


def test_a_value_that_only_python_writes_does_not_break_the_file(tmp_path):
    folder = write_labelme(tmp_path / "a", {"a": [labelme_shape("cup", "rectangle", (10, 20), (30, 60))]})
    text = (folder / "a.json").read_text()
    (folder / "a.json").write_text(text.replace('"imageData": null', '"imageData": NaN'))
    problems = Problems()

    (record,) = read(folder, problems)

    assert (record.image.width, record.regions[0].box_xyxy) == (100, LEFT)
    assert problems.counts == {}


def test_shapes_of_one_group_and_label_are_one_object(tmp_path):
    shapes = [
        labelme_shape("cup", "polygon", *corners((10, 20, 20, 60)), group_id=3),
        labelme_shape("cup", "polygon", *corners((50, 20, 90, 60)), group_id=3),
        labelme_shape("plate", "polygon", *corners(LEFT), group_id=3),
    ]

    cup, plate = read(write_labelme(tmp_path / "a", {"a": shapes}))

    assert [one.box_xyxy for one in (*cup.regions, *plate.regions)] == [(10, 20, 90, 60), LEFT]
    assert rle_area(region_mask(cup.regions[0], 80, 100)) == 10 * 40 + 40 * 40


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (labelme_shape("cup", "circle", (5, 5), (9, 9)), "broken_shape"),
        (labelme_shape("cup", "rectangle", (50, 20), (70, 40), (50, 60), (30, 40)), "broken_shape"),
        (labelme_shape("cup", "polygon", (5, 5), (9, 9)), "broken_shape"),
        (labelme_shape("cup", "mask", (5, 5), (9, 9), mask="no base64!"), "broken_shape"),
        (labelme_shape("cup", "rectangle", (5, 5), (9, 9), flags={"ignore": True}), "ignored_record"),
    ],
)
def test_a_broken_shape_leaves_its_label_out_of_the_image(tmp_path, shape, kind):
    problems = Problems()
    others = [labelme_shape(label, "rectangle", (10, 20), (30, 60)) for label in ("cup", "plate")]

    (record,) = read(write_labelme(tmp_path / "a", {"a": [*others, shape]}), problems)

    assert record.expressions[0].text == "plate"
    assert (problems.counts[kind], problems.counts["target_of_broken_object"]) == (1, 1)
