"""The REFER layout: refs and instances are joined, and every form of the refs file gives the same records."""

import gzip
import json
import os
import pickle
import struct
from collections import Counter
from pathlib import Path

import pytest

from refcli.data.preparation.finish import repair_text
from refcli.data.sources.record import Problems
from refcli.data.sources.refcoco import SOURCE, ReferSettings
from refcli.errors import DataError

REALDATA = os.environ.get("REFCLI_REALDATA", "")
needs_real_data = pytest.mark.skipif(not REALDATA or not Path(REALDATA).is_dir(), reason="REFCLI_REALDATA is not set")


def sentence(number, sent, raw=None):
    return {"sent_id": number, "sent": sent, "raw": raw or sent, "tokens": sent.split()}


def ref(number, ann, image, sentences, split="train", **fields):
    row = {"ref_id": number, "ann_id": ann, "image_id": image, "category_id": 5, "split": split}
    row |= {"file_name": f"COCO_train2014_{image:012d}_{number}.jpg", "sent_ids": [one["sent_id"] for one in sentences]}
    return {**row, "sentences": sentences, **fields}


def instances(path, *, annotations, images, name="COCO_train2014_{:012d}.jpg"):
    """Write an instances file; annotations are {id: image} or {id: (image, more fields)}."""
    rows = []
    for number, given in annotations.items():
        at, fields = given if isinstance(given, tuple) else (given, {})
        rows.append({"id": number, "image_id": at, "category_id": 5, "bbox": [10, 20, 30.5, 40], **fields})
    entries = [{"id": one, "file_name": name.format(one), "width": 640, "height": 480} for one in images]
    path.write_text(json.dumps({"info": [], "images": entries, "annotations": rows, "categories": []}))
    return path


def python2_pickle(value, protocol):
    """The value as Python 2 pickles it: text is byte strings, here UTF-8."""
    return (b"\x80\x02" if protocol == 2 else b"") + _python2(value, protocol) + b"."


def _python2(value, protocol):
    if isinstance(value, str):
        data = value.encode()
        return b"S" + repr(data)[1:].encode() + b"\n" if protocol == 0 else b"U" + bytes([len(data)]) + data
    if isinstance(value, int):
        return b"I%d\n" % value if protocol == 0 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return (b"(l" if protocol == 0 else b"]") + b"".join(_python2(one, protocol) + b"a" for one in value)
    pairs = (_python2(key, protocol) + _python2(one, protocol) + b"s" for key, one in value.items())
    return (b"(d" if protocol == 0 else b"}") + b"".join(pairs)


def read(refs, instances_path, *, dataset="my_set", **settings):
    problems = Problems()
    files = {"refs": refs, "instances": instances_path}
    return list(SOURCE.read(files, ReferSettings(**settings), dataset=dataset, problems=problems)), problems


REFS = [
    ref(4, 70, 9, [sentence(0, "left woman gray shirt", "Left woman grey shirt!"), sentence(1, "woman")]),
    ref(5, 71, 9, [sentence(2, "dog (tm)", "dog (™)")], split="testA"),
    ref(6, 80, 12, [sentence(3, "", "...")], split="val"),
]


@pytest.fixture
def objects(tmp_path):
    polygon = {"segmentation": [[10, 20, 40.5, 20, 40.5, 60]]}
    return instances(tmp_path / "instances.json", annotations={70: (9, polygon), 71: 9, 80: 12}, images=[9, 12])


def as_json(refs, **_):
    return json.dumps(refs).encode()


FORMS = {
    "refs(unc).json": as_json,
    "refs(unc).json.gz": lambda refs: gzip.compress(as_json(refs)),
    "refs(unc).p": lambda refs: python2_pickle(refs, 0),
    "refs(google).p": lambda refs: python2_pickle(refs, 2),
    "refs(umd).p": lambda refs: pickle.dumps(refs, protocol=0),
    "refs_unc.p": lambda refs: pickle.dumps(refs, protocol=2),
    "refs_umd.p": lambda refs: pickle.dumps(refs, protocol=5),
    "refs_unc.p.gz": lambda refs: gzip.compress(python2_pickle(refs, 2)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_refs_file_gives_the_same_records(tmp_path, objects, name):
    path = tmp_path / name
    path.write_bytes(FORMS[name](REFS))
    records, problems = read(path, objects, text="raw")
    assert [(record.split, record.image.key) for record in records] == [
        ("train", "coco:9"),
        ("testA", "coco:9"),
        ("val", "coco:12"),
    ]
    texts = [[(one.id, repair_text(one.text)) for one in record.expressions] for record in records]
    assert texts == [[("4/0", "Left woman grey shirt!"), ("4/1", "woman")], [("5/2", "dog (™)")], [("6/3", "...")]]
    assert records[0].where == f"{name}: ref 4"
    assert not problems.counts
    assert SOURCE.sniff(path)


def test_the_cleaned_sentence_is_the_default_and_empty_ones_are_passed_on(tmp_path, objects):
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json(REFS))
    records, _ = read(path, objects)
    assert [one.text for record in records for one in record.expressions] == [
        "left woman gray shirt",
        "woman",
        "dog (tm)",
        "",
    ]


def test_a_record_has_the_box_the_polygons_and_the_image_of_its_annotation(tmp_path, objects):
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json(REFS))
    record = read(path, objects)[0][0]
    (region,) = record.regions
    assert region.box_xyxy == (10.0, 20.0, 40.5, 60.0)
    assert json.loads(region.segmentation) == [[10, 20, 40.5, 20, 40.5, 60]]
    assert region.source_id == "coco:70"
    assert record.image.names[0] == "COCO_train2014_000000000009.jpg"
    assert (record.image.width, record.image.height) == (640, 480)


def test_joint_splits_of_refclef_are_memberships(tmp_path, objects):
    splits = {"testAB": ["testA", "testB"], "testBC": ["testB", "testC"], "testA": ["testA"], "test": ["test"]}
    for joint, members in splits.items():
        path = tmp_path / "refs(unc).p"
        path.write_bytes(pickle.dumps([ref(1, 70, 9, [sentence(0, "sky")], split=joint)], protocol=2))
        assert [record.split for record in read(path, objects)[0]] == members


def test_saiapr_images_are_found_by_their_ids(tmp_path):
    objects = instances(tmp_path / "instances.json", annotations={8: 19579}, images=[19579], name="{}.jpg")
    path = tmp_path / "refs(berkeley).json"
    path.write_bytes(as_json([ref(1, 8, 19579, [sentence(0, "sky")])]))
    (record,), _ = read(path, objects, images="saiapr", dataset="refclef")
    assert (record.image.key, record.image.names) == ("saiapr:19579", ("19579.jpg",))
    assert record.regions[0].source_id == "refclef:8"


def test_images_of_unknown_origin_are_found_by_the_name_in_instances(tmp_path):
    objects = instances(tmp_path / "instances.json", annotations={8: 3}, images=[3], name="day\\street_{}.png")
    path = tmp_path / "refs.json"
    path.write_bytes(as_json([ref(1, 8, 3, [sentence(0, "bus")])]))
    (record,), _ = read(path, objects)
    assert (record.image.key, record.image.names) == ("my_set:day/street_3.png", ("day/street_3.png",))
    (record,), _ = read(path, objects, images="coco")
    assert record.image.key == "coco:3"


def test_a_coco_like_name_with_another_number_is_not_a_coco_image(tmp_path):
    objects = instances(tmp_path / "i.json", annotations={8: 3}, images=[3], name="COCO_train2014_000000000004.jpg")
    path = tmp_path / "refs.json"
    path.write_bytes(as_json([ref(1, 8, 3, [sentence(0, "bus")])]))
    assert read(path, objects)[0][0].image.key == "my_set:COCO_train2014_000000000004.jpg"


def test_a_crowd_is_kept_and_counted(tmp_path):
    crowd = {"iscrowd": 1, "segmentation": {"counts": [0, 640 * 480], "size": [480, 640]}}
    objects = instances(tmp_path / "instances.json", annotations={8: (3, crowd)}, images=[3])
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json([ref(1, 8, 3, [sentence(0, "people")])]))
    (record,), problems = read(path, objects)
    assert len(record.regions) == 1
    assert problems.counts == {"crowd_region": 1}


def test_refs_without_a_known_image_or_annotation_are_left_out_and_counted(tmp_path):
    objects = instances(tmp_path / "instances.json", annotations={8: 3, 9: 4}, images=[3])
    path = tmp_path / "refs(unc).json"
    good, unknown = ref(1, 8, 3, [sentence(0, "bus")]), ref(2, 999, 3, [sentence(1, "car"), sentence(2, "van")])
    path.write_bytes(as_json([good, unknown, ref(3, 9, 4, [sentence(3, "cat")]), ref(4, 8, 3, [])]))
    records, problems = read(path, objects)
    assert [record.where for record in records] == ["refs(unc).json: ref 1"]
    assert problems.counts == {"unknown_annotation": 1, "unknown_image": 1, "ref_without_sentences": 1}
    assert problems.places["unknown_annotation"] == ["refs(unc).json: ref 2: annotation 999, 2 expressions"]


def test_an_annotation_of_another_image_is_a_contradiction(tmp_path, objects):
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json([REFS[0], ref(7, 80, 9, [sentence(9, "cat")])]))
    with pytest.raises(DataError, match="about image 9, its annotation 80 about image 12") as caught:
        read(path, objects)
    assert caught.value.where == "refs(unc).json: ref 7"


def test_the_instances_file_of_another_data_set_is_an_error(tmp_path):
    objects = instances(tmp_path / "instances.json", annotations={1: 1}, images=[1])
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json(REFS))
    with pytest.raises(DataError, match=r"none of the annotations that refs\(unc\)\.json refers to"):
        read(path, objects)


def test_an_id_that_occurs_twice_is_an_error(tmp_path, objects):
    path = tmp_path / "refs(unc).json"
    path.write_bytes(as_json([ref(1, 70, 9, [sentence(0, "a"), sentence(0, "b")])]))
    with pytest.raises(DataError, match="1/0"):
        read(path, objects)


def test_a_negative_sentence_with_the_id_of_another_gets_its_position_and_stays_in_the_group_of_its_ref(
    tmp_path, objects
):
    path = tmp_path / "refs(unc).json"
    sentences = [sentence(0, "bus"), sentence(1, "red bus", raw="Red bus") | {"exist": True}]
    negatives = [sentence(0, "cat") | {"exist": False}, sentence(0, "dog") | {"exist": False}]
    path.write_bytes(as_json([ref(1, 70, 9, [*sentences, *negatives])]))
    present, absent = read(path, objects, text="raw")[0]
    assert [one.id for one in present.expressions] == ["1/0", "1/1"]
    assert [(one.id, one.text) for one in absent.expressions] == [("1/0-2", "cat"), ("1/0-3", "dog")]
    assert (len(present.regions), absent.regions) == (1, ())


def test_sentences_without_ids_are_numbered_and_without_the_wanted_text_refused(tmp_path, objects):
    path = tmp_path / "refs.json"
    path.write_bytes(as_json([ref(1, "70", 9, []) | {"sentences": [{"raw": "A bus"}, {"raw": "A bus"}]}]))
    (record,), _ = read(path, objects, text="raw")
    assert [one.id for one in record.expressions] == ["1/0", "1/1"]
    with pytest.raises(DataError, match="sentence 0 has no 'sent'") as caught:
        read(path, objects)
    assert "text=raw" in caught.value.hint


@pytest.mark.parametrize(("annotation", "fields"), [([70, 71], {}), (70, {"no_target": True})])
def test_lists_of_annotations_and_refs_without_a_target_are_for_grefcoco(tmp_path, objects, annotation, fields):
    path = tmp_path / "refs.json"
    path.write_bytes(as_json([{**ref(1, annotation, 9, [sentence(0, "both")]), **fields}]))
    with pytest.raises(DataError) as caught:
        read(path, objects)
    assert "grefcoco" in caught.value.hint
    assert not SOURCE.sniff(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[1, 2]", b"[{}]", b'{"images": []}', b"\x80\x02]q\x00", b"cos\nsystem\n.", pickle.dumps({"a": 1}, 2)],
)
def test_foreign_files_are_neither_recognised_nor_read(tmp_path, objects, data):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(data)
    assert not SOURCE.sniff(path)
    with pytest.raises(DataError):
        read(path, objects)


def test_neither_a_folder_nor_a_missing_or_broken_file_is_recognised(tmp_path):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(as_json(REFS))[:40])
    assert not SOURCE.sniff(tmp_path)
    assert not SOURCE.sniff(tmp_path / "absent.p")
    assert not SOURCE.sniff(broken)


REAL_COUNTS = {
    ("refcoco", "unc"): (8, 23),
    ("refcoco", "google"): (6, 17),
    ("refcoco+", "unc"): (8, 25),
    ("refcocog", "google"): (4, 8),
    ("refcocog", "umd"): (6, 12),
}


@needs_real_data
@pytest.mark.parametrize(("name", "author"), REAL_COUNTS)
def test_the_three_forms_of_genuine_records_are_equal_and_complete(name, author):
    folder = Path(REALDATA) / "refer_tfds_sample" / name
    forms = []
    for ending in ("p", "json", "py2proto0.p"):
        path = folder / f"refs({author}).{ending}"
        assert SOURCE.sniff(path)
        records, problems = read(path, folder / "instances.json")
        assert not problems.counts
        forms.append([(one.split, one.image, one.expressions, one.regions) for one in records])
    assert forms[0] == forms[1] == forms[2]
    assert (len(forms[0]), sum(len(texts) for _, _, texts, _ in forms[0])) == REAL_COUNTS[name, author]


@needs_real_data
def test_genuine_splits_divide_images_for_unc_and_objects_for_google():
    folder = Path(REALDATA) / "refer_tfds_sample"
    unc, _ = read(folder / "refcoco/refs(unc).p", folder / "refcoco/instances.json")
    google, _ = read(folder / "refcocog/refs(google).p", folder / "refcocog/instances.json")
    assert {one.split for one in unc if one.image.key == "coco:460986"} == {"train"}
    assert Counter(one.split for one in google if one.image.key == "coco:460986") == {"val": 1, "train": 2}
    of_object = [one.split for one in (*unc, *google) if one.regions[0].source_id == "coco:1877288"]
    assert of_object == ["train", "val"]


@needs_real_data
def test_template_refs_are_all_read():
    folder = Path(REALDATA) / "template_refs"
    records, problems = read(folder / "refs(template).json", folder / "instances.json")
    assert Counter(record.split for record in records) == {"train": 328, "test": 176, "val": 123}
    assert sum(len(record.expressions) for record in records) == 1_124
    assert set(problems.counts) <= {"crowd_region"}
