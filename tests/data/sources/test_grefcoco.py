"""Reading gRefCOCO: several targets, or none."""

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest

from refcli.data.sources.grefcoco import SOURCE, GrefcocoSettings
from refcli.data.sources.record import Problems
from refcli.errors import DataError

REALDATA = os.environ.get("REFCLI_REALDATA", "")


def ref(number, ann, text, split="train", **fields):
    row = {"ref_id": number, "ann_id": ann, "category_id": [1], "image_id": 9, "split": split, "sent_ids": [number]}
    sentences = [{"sent_id": number, "sent": text.lower(), "raw": text, "tokens": text.lower().split()}]
    return {**row, "file_name": "COCO_train2014_000000000009.jpg", "sentences": sentences, **fields}


@pytest.fixture
def objects(tmp_path):
    path = tmp_path / "instances.json"
    rows = [{"id": one, "image_id": 9, "category_id": 1, "bbox": [one, 2, 3, 4], "iscrowd": 0} for one in (70, 71)]
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480}]
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": []}))
    return path


def write(tmp_path, refs):
    path = tmp_path / "grefs(unc).json"
    path.write_text(json.dumps(refs))
    return path


def read(refs, objects, **settings):
    problems = Problems()
    files = {"refs": refs, "instances": objects}
    return list(SOURCE.read(files, GrefcocoSettings(**settings), dataset="grefcoco", problems=problems)), problems


def ids(record):
    return [region.source_id for region in record.regions]


def test_several_one_and_no_targets_are_distinguished(tmp_path, objects):
    rows = [
        ref(1, [71, 70], "Both men", no_target=False),
        ref(2, [70], "Left man", "val", no_target=False),
        ref(3, [-1], "the bus", "testA", no_target=True),
        ref(4, [], "the car", "testB"),
        ref(5, 71, "right man", "testB"),
        ref(6, -1, "a dog", "testB"),
    ]
    records, problems = read(write(tmp_path, rows), objects)
    assert [ids(one) for one in records] == [["coco:71", "coco:70"], ["coco:70"], [], [], ["coco:71"], []]
    assert [one.split for one in records] == ["train", "val", "testA", "testB", "testB", "testB"]
    assert {one.image.key for one in records} == {"coco:9"}
    assert [one.expressions[0].id for one in records[:2]] == ["1/1", "2/2"]
    assert not problems.counts


def test_sentences_are_as_typed_unless_the_cleaned_ones_are_requested(tmp_path, objects):
    path = write(tmp_path, [ref(1, [71, 70], "Both Men!")])
    assert read(path, objects)[0][0].expressions[0].text == "Both Men!"
    assert read(path, objects, text="sent")[0][0].expressions[0].text == "both men!"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_pickles_read_like_json(tmp_path, objects, protocol):
    rows = [ref(1, [70, 71], "Both men"), ref(2, [-1], "the bus")]
    path = tmp_path / "grefs(unc).p"
    path.write_bytes(pickle.dumps(rows, protocol))
    packed = tmp_path / "grefs(unc).p.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain = [(one.expressions, one.regions) for one in read(write(tmp_path, rows), objects)[0]]
    for form in (path, packed):
        assert [(one.expressions, one.regions) for one in read(form, objects)[0]] == plain
        assert SOURCE.sniff(form)


@pytest.mark.parametrize(
    ("ann", "flag"), [([70], True), ([-1], False), ([], False), (70, True), ([70, -1], None), ([-1, 71], True)]
)
def test_a_ref_with_and_without_a_target_is_an_error_that_names_it(tmp_path, objects, ann, flag):
    path = write(tmp_path, [ref(1, [70, 71], "both"), ref(17, ann, "the bus", no_target=flag)])
    with pytest.raises(DataError) as caught:
        read(path, objects)
    assert caught.value.where == "grefs(unc).json: ref 17"


def test_the_source_of_ref_zom_decides_and_its_images_of_val2014_are_cocos(tmp_path):
    images = [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "width": 640, "height": 480}]
    boxes = [{"id": 70, "image_id": 42, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}]
    objects = tmp_path / "instances.json"
    objects.write_text(json.dumps({"images": images, "annotations": boxes, "categories": []}))
    rows = [
        ref(1, [70], "a dog", image_id=42, source="one"),
        ref(2, [], "a cat", image_id=42, source="zero"),
        ref(3, [70], "a cow", image_id=42, source="zero"),
        ref(4, [], "a hen", image_id=42, source="many"),
        ref(5, None, "a pig", image_id=42, source="Zero"),
        ref(6, None, "a cup", image_id=42),
    ]
    records, problems = read(write(tmp_path, rows), objects)
    assert [(one.expressions[0].text, ids(one)) for one in records] == [
        ("a dog", ["coco:70"]),
        ("a cat", []),
        ("a cow", []),
        ("a pig", []),
    ]
    assert {one.image.key for one in records} == {"coco:42"}
    assert problems.counts == {"no_target_with_annotations": 1, "broken_ref": 2}


def test_an_annotation_named_twice_is_one_region(tmp_path, objects):
    (record,), problems = read(write(tmp_path, [ref(1, [70, 71, 70], "both")]), objects)
    assert ids(record) == ["coco:70", "coco:71"]
    assert problems.counts == {"repeated_annotation": 1}


def test_a_ref_with_one_unknown_annotation_is_left_out_completely(tmp_path, objects):
    records, problems = read(write(tmp_path, [ref(1, [70, 999], "both"), ref(2, [70], "left")]), objects)
    assert [ids(one) for one in records] == [["coco:70"]]
    assert problems.counts == {"unknown_annotation": 1}


def test_a_file_of_refs_without_any_target_needs_no_annotation(tmp_path, objects):
    records, _ = read(write(tmp_path, [ref(1, [-1], "the bus")]), objects)
    assert [one.regions for one in records] == [()]


def test_the_coco_style_export_is_refused_with_the_format_to_use(tmp_path, objects):
    path = tmp_path / "finetune_grefcoco_val.json"
    dummy = {"id": 1, "image_id": 1, "bbox": [0, 0, 0, 0], "category_id": -1, "iscrowd": -1, "area": -1, "empty": True}
    path.write_text(json.dumps({"images": [{"id": 1, "caption": "the bus"}], "annotations": [dummy]}))
    with pytest.raises(DataError) as caught:
        read(path, objects)
    assert "--format coco" in caught.value.hint
    assert not SOURCE.sniff(path)


def test_bare_ids_are_recognised_as_grefcoco_only_with_its_flag(tmp_path):
    assert SOURCE.sniff(write(tmp_path, [ref(1, 70, "left", no_target=False)]))
    assert not SOURCE.sniff(write(tmp_path, [ref(1, 70, "left")]))


@pytest.mark.skipif(not REALDATA or not Path(REALDATA).is_dir(), reason="REFCLI_REALDATA is not set")
def test_template_refs_are_all_read():
    folder = Path(REALDATA) / "template_refs"
    assert SOURCE.sniff(folder / "grefs(template).json")
    records, _ = read(folder / "grefs(template).json", folder / "instances.json")
    assert len(records) == 449
    assert sum(not one.regions for one in records) == 228
    assert sum(len(one.regions) > 1 for one in records) == 221
