"""Labelled images become examples: certain expressions with their regions, and a reason for every image without one."""

import json

import numpy as np
import pytest
from PIL import Image

from refcli.data.preparation.plan import plan_file
from refcli.data.shard import Shard
from refcli.data.store.read import Store
from refcli.errors import ConfigError, DataError
from refcli.recipes.prepare_data import Preparation, prepare

CATEGORIES = ["dog", "red_car", "Car", "person", "class_7", "zebra"]


def box(annotation_id, image_id, category, bbox, **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": 0} | more


LABELS = [
    box(1, 1, 0, [5, 20, 30, 30], segmentation=[[5, 20, 35, 20, 35, 50, 5, 50]]),
    box(2, 1, 2, [60, 20, 30, 30]),
    box(3, 2, 2, [5, 20, 30, 30], segmentation=[[5, 20, 35, 20, 35, 50, 5, 50]]),
    box(4, 2, 2, [60, 20, 30, 30], segmentation=[[60, 20, 90, 20, 90, 50, 60, 50]]),
    box(5, 3, 3, [10, 10, 20, 40]),
    box(6, 3, 3, [40, 10, 50, 40], iscrowd=1),
    box(7, 4, 4, [10, 10, 50, 40]),
]


def write_labels(folder, labels=LABELS, *, num_images=5, name="instances_train.json", categories=CATEGORIES):
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(1, num_images + 1)]
    names = [{"id": number, "name": one} for number, one in enumerate(categories)]
    (folder / name).write_text(json.dumps({"images": images, "annotations": labels, "categories": names}))
    return folder / name


def prepared(file, *, images=(), shard=None, out=None, **settings):
    plan = plan_file(file, name="mine", overrides={"expressions": "template", "expressions_per_image": 30} | settings)
    out = out or file.parent / f"store{len(list(file.parent.glob('store*')))}"
    report = prepare(plan, Preparation(out=out, images=images, shard=shard))
    split = Store(out).split("mine:train") if shard is None or shard.number == shard.total else ()
    return report, list(split)


def about(examples, image_id):
    return {one.expression.removeprefix("the "): one for one in examples if one.image_id == f"mine:{image_id}.png"}


def test_an_example_has_the_regions_that_its_expression_refers_to_and_its_kind(tmp_path):
    report, examples = prepared(write_labels(tmp_path))
    first, second = about(examples, 1), about(examples, 2)
    (dog,) = first["dog"].regions
    assert dog.box_xyxy == (5, 20, 35, 50)
    assert dog.mask is not None
    assert first["dog"].kind == "attribute"
    assert {one.box_xyxy for one in second["two cars"].regions} == {(5, 20, 35, 50), (60, 20, 90, 50)}
    assert second["two cars"].kind == "plural"
    leftmost = [one for text, one in second.items() if one.kind == "superlative" and "left" in text]
    assert [[region.box_xyxy for region in one.regions] for one in leftmost] == [[(5, 20, 35, 50)]] * len(leftmost)
    assert leftmost
    assert all((one.kind == "no_target") == (one.regions == ()) for one in examples)
    assert len({one.id for one in examples}) == len(examples)
    assert all(one.id.startswith(f"mine/{one.image_id.removeprefix('mine:')}/") for one in examples)
    assert report.labelled_images == 5
    assert sum(report.kinds.values()) == len(examples) == report.splits[0].examples
    assert report.to_json()["kinds"]["no_target"] == report.splits[0].no_target


def test_a_crowd_leaves_no_count_and_a_class_without_a_noun_no_expression_at_all(tmp_path):
    report, examples = prepared(write_labels(tmp_path))
    assert {one.kind for one in about(examples, 3).values()} <= {"superlative", "ordinal", "no_target"}
    assert about(examples, 4) == {}
    assert report.problems.counts == {"no_certain_expression": 1, "class_without_noun": 1, "image_without_labels": 1}
    assert "'class_7', 1 objects" in report.problems.places["class_without_noun"][0]
    assert report.lost == {}


def test_only_classes_that_are_labelled_in_the_split_are_stated_to_be_absent(tmp_path):
    _, examples = prepared(write_labels(tmp_path), seed=4)
    absent = " ".join(one.expression for one in examples if one.kind == "no_target")
    assert "zebra" not in absent
    assert len(about(examples, 5)) == 1
    assert any(one.kind == "no_target" for one in about(examples, 5).values())


def test_the_expressions_of_an_image_do_not_depend_on_shards_nor_on_the_order_of_the_file(tmp_path):
    file = write_labels(tmp_path)
    _, whole = prepared(file)
    texts = {one.id: one.expression for one in whole}
    prepared(file, shard=Shard(1, 2), out=tmp_path / "parts")
    _, parts = prepared(file, shard=Shard(2, 2), out=tmp_path / "parts")
    assert {one.id: one.expression for one in parts} == texts
    turned = json.loads(file.read_text())
    turned["images"].reverse()
    file.write_text(json.dumps(turned))
    assert {one.id: one.expression for one in prepared(file)[1]} == texts
    assert {one.id: one.expression for one in prepared(file, seed=1)[1]} != texts


def test_colours_come_from_the_pixels_and_without_images_there_are_none(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(1, 6):
        pixels = np.full((80, 100, 3), 120, dtype=np.uint8)
        pixels[20:50, 60:90] = (210, 20, 30) if number == 2 else 120
        Image.fromarray(pixels).save(images / f"{number}.png")
    _, examples = prepared(write_labels(tmp_path), images=(images,))
    (car,) = about(examples, 2)["red car"].regions
    assert car.box_xyxy == (60, 20, 90, 50)
    assert not any("red" in one.expression for one in prepared(write_labels(tmp_path))[1])


def test_objects_that_may_be_unlabelled_give_no_count_no_place_and_no_absence(tmp_path):
    _, examples = prepared(write_labels(tmp_path), exhaustive=False)
    assert {one.kind for one in examples} == {"attribute", "relation", "plural"}
    assert about(examples, 2) == {}
    assert {"dog", "car"} <= about(examples, 1).keys()


def test_an_image_whose_labels_are_incomplete_is_left_out_and_reported(tmp_path):
    broken = [*LABELS, box(8, 1, 0, "?"), box(9, 2, 0, [200, 10, 10, 10])]
    report, examples = prepared(write_labels(tmp_path, broken))
    assert about(examples, 1) == about(examples, 2) == {}
    assert report.problems.counts["annotation_without_box"] == 1
    assert report.problems.counts["box_outside_the_image"] == 1
    file = json.loads(write_labels(tmp_path).read_text())
    file["images"].append({"id": 9, "file_name": "1.png", "width": 100, "height": 80})
    (tmp_path / "twice.json").write_text(json.dumps(file))
    report, examples = prepared(tmp_path / "twice.json")
    assert about(examples, 1) == {}
    assert report.problems.counts["labels_in_several_records"] == 2


def test_labels_without_any_noun_are_an_error_that_names_them(tmp_path):
    file = write_labels(tmp_path, categories=["class_0", "1", "no_helmet", "b", "汽车"])
    with pytest.raises(DataError, match="that is an English noun: 'b', 'class_0', 'no_helmet', '汽车'"):
        prepared(file)


@pytest.mark.parametrize("setting", [{"exhaustive": False}, {"seed": 3}, {"expressions_per_image": 2}])
def test_a_setting_of_templates_without_templates_is_refused(tmp_path, setting):
    with pytest.raises(ConfigError) as caught:
        plan_file(write_labels(tmp_path), name="mine", overrides={"expressions": "category"} | setting)
    assert "has no effect without expressions=template" in f"{caught.value.message} {caught.value.hint}"
