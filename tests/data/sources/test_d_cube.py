"""D-cube: which descriptions an image is asked for, and the COCO files of its evaluation."""

import pytest
from corpora.refer_sets import LEFT, RIGHT, d_cube_rows, write_d_cube, write_json, write_pickle, xywh

from refcli.data.preparation.plan import plan_file
from refcli.data.sources.record import Problems
from refcli.errors import DataError


def read(file, **settings):
    plan = plan_file(file, name="tiny", overrides=settings)
    problems = Problems()
    return list(plan.source.read(plan.files, plan.settings, dataset="tiny", problems=problems)), problems


def boxes(record):
    return [region.box_xyxy for region in record.regions]


def test_between_scenarios_every_image_is_paired_with_every_description(tmp_path):
    records, _ = read(write_d_cube(tmp_path), scenario="inter")
    truth = {"0/1": [LEFT, RIGHT], "0/2": [], "0/3": [RIGHT], "0/4": [], "1/1": [], "1/2": [], "1/3": [], "1/4": [LEFT]}
    assert {record.expressions[0].id: boxes(record) for record in records} == truth


def test_the_descriptions_are_chinese_on_request(tmp_path):
    records, _ = read(write_d_cube(tmp_path), language="zh")
    assert records[0].expressions[0].text == "\u4e1c\u897f 1"


def test_an_image_is_left_out_if_an_object_of_it_is_of_another_image_or_has_no_box(tmp_path):
    file = write_d_cube(tmp_path)
    rows = d_cube_rows()["annotations"]
    rows[7]["image_id"] = 1
    rows[9] |= {"bbox": [1, 2, 3], "segmentation": None}
    rows[10] = {**rows[8], "id": 10}
    write_pickle(tmp_path / "annotations.pkl", rows, protocol=4)
    records, problems = read(file)
    assert records == []
    assert problems.counts == {"image_without_truth": 3, "unlisted_annotation": 1}


def test_a_pickle_without_a_usable_row_is_refused(tmp_path):
    file = write_d_cube(tmp_path)
    write_pickle(tmp_path / "groups.pkl", {1: {"id": 2, "inner_sent_id": []}})
    with pytest.raises(DataError, match="its id is 2"):
        read(file)


def test_the_coco_files_are_read_with_their_categories_as_descriptions(tmp_path):
    categories = [{"id": 1, "name": "a thing on a table"}, {"id": 2, "name": "a thing without a lid"}]
    rows = [
        {"id": number, "image_id": 0, "category_id": 1, "bbox": xywh(box), "area": 1, "iscrowd": 0}
        for number, box in enumerate((LEFT, RIGHT))
    ]
    images = [{"id": 0, "file_name": "group/0.jpg", "height": 80, "width": 100}]
    file = write_json(
        tmp_path / "d3_full_annotations.json", {"images": images, "categories": categories, "annotations": rows}
    )
    ((record,), problems) = read(file, expressions="category")
    assert (record.expressions[0].text, boxes(record)) == ("a thing on a table", [LEFT, RIGHT])
    assert not problems.counts
