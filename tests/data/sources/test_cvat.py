"""CVAT's XML: masks, groups, subsets, and the shapes that are refused."""

from __future__ import annotations

import pytest
from corpora.json_sets import LEFT, RIGHT
from corpora.label_tools import cvat_box, cvat_mask, write_cvat

from refcli.data.preparation.finish import region_mask
from refcli.data.sources.cvat import SOURCE
from refcli.data.sources.record import Problems
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask


def read(path, problems=None):
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"train": path}, SOURCE.settings(), dataset="mine", problems=problems))


def test_a_mask_is_placed_by_its_corner_and_starts_with_background(tmp_path):
    mask = '<mask label="cup" rle="1, 2, 2, 1" left="5" top="7" width="3" height="2"></mask>'

    (record,) = read(write_cvat(tmp_path / "a.xml", [("", mask)]))

    pixels = decode_mask(region_mask(record.regions[0], 80, 100))
    assert pixels[7:9, 5:8].tolist() == [[False, True, True], [False, False, True]]
    assert pixels.sum() == 3


def test_only_one_box_and_one_mask_of_a_label_in_a_group_are_one_object(tmp_path):
    one = cvat_box(LEFT, "cup", group_id="1") + cvat_mask(RIGHT, "cup", group_id="1")
    grouped = cvat_box(LEFT, "cup", group_id="2") + cvat_box(RIGHT, "cup", group_id="2")
    alone = cvat_box(LEFT, "plate", group_id="0") + cvat_mask(LEFT, "plate", group_id="0")

    cups, plates = read(write_cvat(tmp_path / "a.xml", [("", one + grouped + alone)]))

    assert [(each.box_xyxy, each.segmentation is not None) for each in cups.regions] == [
        (LEFT, True),
        (LEFT, False),
        (RIGHT, False),
    ]
    assert [(each.box_xyxy, each.segmentation is not None) for each in plates.regions] == [(LEFT, False), (None, True)]


def test_a_subset_is_a_split_and_the_default_one_is_the_split_of_the_file(tmp_path):
    subsets = ("", 'subset="default"', 'subset="Test"', 'subset="Validation"', 'subset="night"')
    path = write_cvat(tmp_path / "a.xml", [(one, cvat_box(LEFT, "cup")) for one in subsets])

    assert [record.split for record in read(path)] == ["train", "train", "test", "val", "night"]


def test_each_task_of_a_project_may_count_its_images_from_0(tmp_path):
    path = write_cvat(tmp_path / "a.xml", [("", cvat_box(LEFT, "cup"))] * 3)
    path.write_text(path.read_text().replace('id="1"', 'id="0"').replace('id="2"', 'id="0"'))

    assert [record.expressions[0].id for record in read(path)] == ["0/0", "0-2/0", "0-3/0"]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (cvat_box(LEFT, "cup", rotation="30.0"), "rotated_box"),
        (cvat_box(LEFT, "cup", outside="1"), "ignored_record"),
        ('<polyline label="cup" points="1,2;3,4"></polyline>', "broken_shape"),
        ('<polygon label="cup" points="1,2;3"></polygon>', "broken_shape"),
        ('<mask label="cup" rle="1, 2" left="0" top="0" width="2" height="2"></mask>', "broken_shape"),
        ('<mask label="cup" rle="1, 3" left="99" top="0" width="2" height="2"></mask>', "broken_shape"),
    ],
)
def test_a_broken_shape_leaves_its_label_out_of_the_image(tmp_path, shape, kind):
    problems = Problems()
    path = write_cvat(tmp_path / "a.xml", [("", cvat_box(RIGHT, "cup") + shape + cvat_box(LEFT, "plate"))])

    (record,) = read(path, problems)

    assert record.expressions[0].text == "plate"
    assert (problems.counts[kind], problems.counts["target_of_broken_object"]) == (1, 1)


def test_tracks_of_a_video_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<annotations><track id="0" label="cup"></track></annotations>')

    with pytest.raises(DataError, match="an export of a video"):
        read(path)
