"""An odd value that is not used changes nothing; if it is used, its record is reported and the others are read."""

import io
import json
import pickle
import zipfile

import pytest

from refcli.data.sources.coco.instances import read_instances
from refcli.data.sources.record import Problems
from refcli.data.store.read import Store

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
PHOTOGRAPH = {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 100, "height": 80}
OBJECT = {"id": 7, "image_id": 581857, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, "segmentation": SQUARE}
REF = {"ref_id": 1, "ann_id": 7, "image_id": 581857, "split": "val", "sentences": [{"sent": "cup", "raw": "Cup"}]}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}
BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0}


@pytest.fixture
def prepare(refcli, tmp_path):
    """Prepare one file as the data set m: (exit code, its report, messages)."""

    def call(content, name, *arguments, **beside):
        for file, data in {name: content, **beside}.items():
            (tmp_path / file).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        code, _, messages = refcli(
            "prepare-data", "--from", tmp_path / name, "--name", "m", "--out", tmp_path / "store", *arguments
        )
        report = tmp_path / "store" / "m" / "report.json"
        return code, json.loads(report.read_text()) if report.exists() else {}, messages

    return call


def texts(tmp_path, split="m:val"):
    return sorted(Store(tmp_path / "store").split(split).column("expression").to_pylist())


def json_lines(*records):
    return "\n".join(map(json.dumps, records)).encode()


@pytest.mark.parametrize(
    "odd",
    [
        {"bbox": []},
        {"bbox": None},
        {"bbox": "none"},
        {"category_id": None},
        {"iscrowd": None},
        {"id": "5b1c-77"},
        {"id": None},
        {"image_id": None},
        {"area": float("nan")},
        {"segmentation": 5},
    ],
)
def test_an_odd_annotation_that_no_ref_names_changes_nothing(prepare, odd):
    instances = {"images": [PHOTOGRAPH], "annotations": [OBJECT, {**OBJECT, "id": 8, **odd}], "categories": []}
    code, report, messages = prepare([REF], "refs(unc).json", **{"instances.json": instances})
    assert code == 0, messages
    (split,) = report["splits"]
    assert (split["images"], split["examples"], split["regions"], split["masks"]) == (1, 1, 1, 1)


@pytest.mark.parametrize("odd", [{"width": 100.5}, {"file_name": None}, {"id": "x"}, {"height": -1}, 5, None])
def test_an_odd_image_that_no_ref_names_changes_nothing(prepare, odd):
    other = {**PHOTOGRAPH, "id": 3, **odd} if isinstance(odd, dict) else odd
    instances = {"images": [PHOTOGRAPH, other], "annotations": [OBJECT], "categories": [None, {"id": "cup-1"}]}
    code, report, messages = prepare([REF], "refs(unc).json", **{"instances.json": instances})
    assert code == 0, messages
    assert report["splits"][0]["masks"] == 1


def test_an_unreadable_ref_is_reported_and_the_others_are_used(prepare, tmp_path):
    odd = [{"ann_id": None}, {"image_id": None}, {"split": None}, {"sentences": None}, {"sentences": [5]}]
    refs = [REF, *({**REF, "ref_id": number, **change} for number, change in enumerate(odd, start=2)), None, 5]
    instances = {"images": [PHOTOGRAPH], "annotations": [OBJECT]}
    code, report, messages = prepare(refs, "refs(unc).json", **{"instances.json": instances})
    assert code == 0, messages
    assert texts(tmp_path) == ["cup"]
    assert report["problems"] == {"broken_ref": 6, "broken_sentence": 1, "ref_without_sentences": 1}


def test_keys_of_a_pickle_that_are_not_strings_are_unknown_keys(prepare, tmp_path):
    instances = {"images": [PHOTOGRAPH], "annotations": [OBJECT]}
    refs = pickle.dumps([{**REF, 7: 1, None: 2, 10**30: 3, ("exist",): False}], protocol=2)
    code, report, messages = prepare(refs, "refs(unc).p", **{"instances.json": instances})
    assert code == 0, messages
    assert (texts(tmp_path), report["problems"]) == (["cup"], {"unused_key": 4})


def test_ids_need_not_be_numbers(prepare, tmp_path):
    instances = {
        "images": [{**PHOTOGRAPH, "id": "img-2"}],
        "annotations": [{**OBJECT, "id": "u-7", "image_id": "img-2"}],
    }
    ref = {**REF, "ann_id": "u-7", "image_id": "img-2"}
    assert prepare([ref], "refs(unc).json", **{"instances.json": instances})[0] == 0
    assert texts(tmp_path) == ["cup"]
    grefs = [{**ref, "ann_id": ["u-7"], "no_target": False}]
    assert prepare(grefs, "grefs(unc).json", **{"instances.json": instances})[0] == 0
    assert texts(tmp_path) == ["Cup"]


def test_an_annotation_without_a_box_has_the_box_of_its_mask(prepare, tmp_path):
    instances = {"images": [PHOTOGRAPH], "annotations": [{**OBJECT, "bbox": []}]}
    code, report, _ = prepare([REF], "refs(unc).json", **{"instances.json": instances})
    assert (code, report["problems"]) == (0, {"unreadable_box": 1})
    assert Store(tmp_path / "store").split("m:val")[0].regions[0].box_xyxy == (10, 10, 30, 30)


def test_the_odd_rows_of_a_coco_file_are_reported_and_the_others_are_used(prepare, tmp_path):
    def box(number, **fields):
        return {**BOX, "id": number, "expression": f"thing {number}", **fields}

    images = [IMAGE, {**IMAGE, "id": 2, "file_name": None}, {**IMAGE, "id": 3, "file_name": "..\\x\\b.jpg"}, None]
    annotations = [
        box(1),
        box(2, bbox=[]),
        box(3, bbox=[1, 2, 3]),
        box(4, bbox=["a", 1, 2, 3]),
        box(5, category_id=None, iscrowd=None, area="NaN", keypoints=[None]),
        box(6, image_id=2),
        box(7, image_id=3),
        box(8, image_id=None),
        box(9, bbox=[float("nan"), 1, 2, 3]),
        box(10, expression=5),
        box("u-11"),
        7,
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": "cup"}]}
    code, report, messages = prepare(content, "val.json")
    assert code == 0, messages
    assert texts(tmp_path) == ["thing 1", "thing 5", "thing u-11"]
    assert report["problems"] == {
        "broken_row": 6,
        "unreadable_value": 2,
        "annotation_without_box": 2,
        "annotation_without_expression": 1,
        "box_not_finite": 1,
        "dropped_record": 1,
    }


def test_nan_is_read_where_it_is_not_used_and_named_where_it_is(prepare, tmp_path):
    one = {**BOX, "id": 1, "expression": "the cup", "area": float("nan"), "keypoints": [float("inf")]}
    two = {**BOX, "id": 2, "expression": "the jug", "bbox": [float("nan"), 1, 2, 3]}
    code, _, messages = prepare({"images": [IMAGE], "annotations": [one, two]}, "val.json")
    assert (code, texts(tmp_path)) == (0, ["the cup"])
    assert "box not finite: 1" in messages
    assert "truncated" not in messages


def test_a_caption_with_an_unreadable_box_is_left_out(prepare, tmp_path):
    captions = [{**IMAGE, "id": number, "caption": f"caption {number}"} for number in (1, 2)]
    boxes = [{**BOX, "id": 1}, {**BOX, "id": 2, "attributes": {"rotation": 15}}, {**BOX, "id": 3, "image_id": 2}]
    code, report, _ = prepare({"images": captions, "annotations": boxes}, "val.json")
    assert (code, texts(tmp_path)) == (0, ["caption 2"])
    assert report["problems"]["target_of_broken_row"] == 1


def test_only_the_phrase_of_an_odd_region_is_left_out(prepare, tmp_path):
    def line(*regions, **fields):
        return {"filename": "a.jpg", "height": 80, "width": 100, "grounding": {"regions": regions}, **fields}

    def region(phrase, bbox=(1, 2, 30, 40), **fields):
        return {"bbox": bbox, "phrase": phrase, **fields}

    lines = json_lines(
        line(region("cup", []), region("cup"), region("jug")),
        line(region("fork"), height=None, width=100.5),
        line(region("knife"), detection={"instances": [{"bbox": None}]}),
        line(region(None)),
        line(region("plate"), filename=None),
    )
    code, report, messages = prepare(lines, "val.jsonl")
    assert code == 0, messages
    assert texts(tmp_path) == ["fork", "jug", "knife"]
    assert (report["problems"]["broken_region"], report["problems"]["broken_line"]) == (1, 2)


def test_an_odd_size_or_kind_of_an_own_line_is_unknown(prepare, tmp_path):
    line = {"image": "a.jpg", "box": [1, 2, 30, 40]}
    odd = [{"width": 100.5, "height": 80}, {"width": -1, "height": -1}, {"kind": 5}, {"width": float("nan")}]
    lines = json_lines(*({**line, "expression": f"thing {number}", **change} for number, change in enumerate(odd)))
    code, report, _ = prepare(lines, "val.jsonl")
    assert (code, len(texts(tmp_path))) == (0, 4)
    assert report["problems"] == {"unreadable_value": 3}


@pytest.mark.parametrize("first", [b'{"image": "a.jpg", "expr', b'{"image": "a.jpg", "expression": "caf\xe9"', b"{"])
def test_a_broken_first_line_does_not_hide_the_format(prepare, tmp_path, first):
    line = {"image": "a.jpg", "box": [1, 2, 30, 40], "expression": "cup"}
    code, report, messages = prepare(first + b"\n" + json_lines(line), "val.jsonl")
    assert code == 0, messages
    assert report["problems"] == {"broken_line": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val.jsonl", json_lines({"image": "a.jpg"}, {"image": "a.jpg", "box": [1, 2, 3, 4], "expression": "cup"})),
        ("val.json", b'[null, ["COCO_train2014_000000581857.jpg", "3.pth", [30.0, 20.0, 10.0, 5.0], "boy", []]]'),
        ("referit_bbox.json", b'{"38685_9": null, "38685_1": [1, 2, 3, 4]}'),
        (
            "val.json",
            json.dumps({"images": [None, IMAGE], "annotations": [None, {**BOX, "id": 1, "caption": "x"}]}).encode(),
        ),
    ],
)
def test_an_odd_first_record_does_not_hide_the_format(prepare, tmp_path, name, content):
    code, _, messages = prepare(content, name, **{"referit_query_val.json": {"38685_1": ["sky"]}})
    assert code == 0, messages
    assert len(texts(tmp_path)) == 1


def test_null_counts_as_missing(prepare, tmp_path):
    line = {
        "image": "a.jpg",
        "box": [1, 2, 30, 40],
        "expression": "cup",
        "no_target": None,
        "box_xywh": None,
        "id": None,
    }
    code, report, messages = prepare(json_lines(line), "val.jsonl")
    assert (code, report["problems"]) == (0, {}), messages
    row = {
        **BOX,
        "id": 1,
        "expression": "cup",
        "empty": None,
        "exist": None,
        "tokens_positive": None,
        "segmentation": None,
    }
    code, report, messages = prepare({"images": [IMAGE], "annotations": [row]}, "val.json")
    assert (code, report["problems"]) == (0, {}), messages


def test_an_odd_tuple_is_reported_and_the_others_are_used(prepare, tmp_path):
    name = "COCO_train2014_000000581857.jpg"
    good = [(name, f"{number}.pth", [30.0, 20.0, 10.0, 30.0], f"boy {number}", []) for number in range(3)]
    rows = [*good, (name, "9.pth", None, "x", []), (None, "9.pth", [1, 2, 3, 4], "y", []), None, (name,)]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("list/data.pkl", pickle.dumps(rows, protocol=2))
    code, report, messages = prepare(archive.getvalue(), "val.pth")
    assert code == 0, messages
    assert texts(tmp_path) == ["boy 0", "boy 1", "boy 2"]
    assert report["problems"]["broken_row"] == 4


def test_only_the_regions_with_odd_values_of_referit_are_left_out(prepare, tmp_path):
    boxes = {"38685_1": [1, 2, 30, 40], "38685_2": None, "38685_3": "x", "38685_4": [1, 2, 3]}
    queries = {
        "38685_1": ["the sky"],
        "38685_2": ["a"],
        "38685_3": ["b"],
        "38685_4": ["c"],
        "odd": ["d"],
        "38685_5": None,
    }
    files = {"referit_query_train.json": queries, "referit_imsize.json": {"38685.jpg": [480.5, None], "9.jpg": "x"}}
    code, report, messages = prepare(boxes, "referit_bbox.json", **files)
    assert code == 0, messages
    assert texts(tmp_path, "m:train") == ["the sky"]
    assert report["problems"] == {"unreadable_box": 3, "broken_row": 2, "unreadable_value": 1}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"<width>100</width>", b"<width>wide</width>", None),
        (b"<xmin>10</xmin>", b"<xmin>" + b"9" * 400 + b"</xmin>", "malformed_annotation"),
        (b"<xmin>10</xmin>", b"<xmin/>", "malformed_annotation"),
    ],
)
def test_only_the_images_with_odd_values_of_flickr_entities_are_left_out(prepare, tmp_path, old, new, problem):
    for folder in ("Sentences", "Annotations"):
        (tmp_path / folder).mkdir()
    xml = (
        b"<annotation><size><width>100</width><height>80</height></size><object><name>1</name><bndbox>"
        b"<xmin>10</xmin><ymin>20</ymin><xmax>59</xmax><ymax>79</ymax></bndbox></object></annotation>"
    )
    for number, content in ((11, xml), (12, xml.replace(old, new))):
        (tmp_path / "Sentences" / f"{number}.txt").write_text(f"[/EN#1/people Man {number}] waits .\n")
        (tmp_path / "Annotations" / f"{number}.xml").write_bytes(content)
    code, report, messages = prepare(b"11\n12\n", "train.txt")
    assert code == 2, messages
    code, report, messages = prepare(b"11\n12\n", "train.txt", "--from", tmp_path / "Annotations", "--format", "flickr")
    assert code == 0, messages
    assert report["problems"] == ({problem: 1} if problem else {})
    assert len(texts(tmp_path, "m:train")) == (1 if problem else 2)


@pytest.mark.parametrize(
    "odd",
    [
        {"width": 10**10, "height": 5},
        {"width": 10**400, "height": 5},
        {"split": "a\0b"},
        {"split": "a" * 400},
        {"split": "../up"},
        {"split": "a\x1b[2J"},
        {"image": "a" * 5000},
        {"image": "a\0b.jpg"},
        {"id": "x" * 100_000},
    ],
)
def test_numbers_and_names_that_no_store_can_hold_are_reported(prepare, tmp_path, odd):
    line = {"image": "p.jpg", "expression": "x", "box": [1, 2, 3, 4]}
    code, report, messages = prepare(json_lines({**line, **odd}, {**line, "expression": "good"}), "val.jsonl")
    assert code == 0, messages
    assert "good" in texts(tmp_path)
    assert sum(report["problems"].values()) == 1


@pytest.mark.parametrize("key", ["id", "kind", "image_id", "expression"])
def test_a_lone_surrogate_does_not_stop_a_file(prepare, tmp_path, key):
    line = {"image": "p.jpg", "expression": "x", "box": [1, 2, 3, 4]}
    code, report, messages = prepare(
        json_lines({**line, key: "half \ud83d"}, {**line, "expression": "good"}), "val.jsonl"
    )
    assert code == 0, messages
    assert len(texts(tmp_path)) == 2
    assert report["problems"] == ({"lost_letter": 1} if key == "expression" else {})


def test_an_id_of_hundreds_of_digits_is_not_a_coco_image(prepare, tmp_path):
    image = {**IMAGE, "caption": "x", "original_id": "1" * 400, "data_source": "coco"}
    code, _, messages = prepare(
        {"images": [image], "annotations": [{**BOX, "id": 1, "original_id": "9" * 400}]}, "val.json"
    )
    assert code == 0, messages
    assert Store(tmp_path / "store").split("m:val").column("image_id").to_pylist() == ["m:a.jpg"]


def test_only_the_ids_of_unwanted_rows_are_checked(tmp_path):
    path = tmp_path / "instances.json"
    odd = [{"id": number, "image_id": 1, "bbox": "x", "category_id": {}, "segmentation": 7} for number in range(5)]
    path.write_text(json.dumps({"images": [PHOTOGRAPH], "annotations": [OBJECT, *odd]}))
    problems = Problems()
    assert set(read_instances(path, annotation_ids=[7], problems=problems).annotations) == {7}
    assert not problems.counts


def test_ids_of_annotations_are_counted_whether_the_text_is_one_or_a_list(tmp_path, refcli):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [10, 10, 20, 20], "expression": "the cup"},
            {"id": 2, "image_id": 1, "bbox": [40, 10, 20, 20], "expressions": ["the fork", "the left fork"]},
        ],
        "categories": [],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))

    assert refcli("prepare-data", "--from", tmp_path / "val.json", "--name", "mine", "--out", tmp_path / "st")[0] == 0
    split = Store(tmp_path / "st").split("mine:val")

    assert [split[row].id for row in range(len(split))] == ["mine/1/0", "mine/2/0", "mine/2/1"]


def test_a_tuple_that_is_not_utf8_is_left_out_of_a_json_list(prepare, tmp_path):
    name = "COCO_train2014_000000581857.jpg"
    rows = json.dumps([[name, f"{number}.pth", [30.0, 20.0, 10.0, 30.0], f"boy {number}", []] for number in range(2)])
    code, report, messages = prepare(rows.encode().replace(b"boy 1", b"gar\xe7on"), "val.json", "--format", "pth")
    assert code == 0, messages
    assert (texts(tmp_path), report["problems"]["broken_row"]) == (["boy 0"], 1)
