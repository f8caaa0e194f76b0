"""A key that changes the meaning of a record is read, or the record is reported, or the file is refused."""

import json
import pickle

import pytest

from refcli.data.store.read import Store

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
PHOTOGRAPH = {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 100, "height": 80}
OBJECT = {"id": 7, "image_id": 581857, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, "segmentation": SQUARE}
REF = {"ref_id": 1, "ann_id": 7, "image_id": 581857, "split": "val"}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, "expression": "the cup"}
LINE = {"image": "a.jpg", "expression": "the cup", "width": 100, "height": 80}


@pytest.fixture
def prepare(refcli, tmp_path):
    """Prepare one file as the data set m: (exit code, number of regions by expression, messages)."""

    def call(content, name, *arguments, **beside):
        for file, data in {name: content, **beside}.items():
            (tmp_path / file).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        code, _, messages = refcli(
            "prepare-data", "--from", tmp_path / name, "--name", "m", "--out", tmp_path / "store", *arguments
        )
        stored = {}
        if (tmp_path / "store" / "manifest.json").exists():
            split = Store(tmp_path / "store").split("m:val")
            stored = {split[row].expression: len(split[row].regions) for row in range(len(split))}
        return code, stored, messages

    return call


def sentences(*marks):
    return [
        {"sent": f"text {number}", "raw": f"text {number}", "sent_id": number, "tokens": [], **mark}
        for number, mark in enumerate(marks)
    ]


def instances(**fields):
    return {"instances.json": {"images": [PHOTOGRAPH], "annotations": [{**OBJECT, **fields}], "categories": []}}


@pytest.mark.parametrize("pack", [json.dumps, lambda refs: pickle.dumps(refs, protocol=2)])
def test_a_sentence_marked_as_not_existing_has_no_target(prepare, pack):
    refs = pack([{**REF, "sentences": sentences({}, {"exist": True}, {"exist": False})}])
    content = refs.encode() if isinstance(refs, str) else refs
    code, stored, messages = prepare(content, "refs(unc).p", **instances())
    assert code == 0, messages
    assert stored == {"text 0": 1, "text 1": 1, "text 2": 0}
    assert "unused key" not in messages


def test_a_ref_marked_as_not_existing_has_no_target(prepare):
    refs = [
        {**REF, "sentences": sentences({}), "exist": False},
        {**REF, "ref_id": 2, "sentences": [{"sent": "other", "raw": "other", "sent_id": 9}], "source": "zero"},
    ]
    code, stored, _ = prepare(refs, "refs(unc).json", **instances())
    assert (code, stored) == (0, {"text 0": 0, "other": 0})


def test_gref_sentences_that_do_not_exist_have_no_target(prepare):
    refs = [{**REF, "ann_id": [7], "no_target": False, "sentences": sentences({}, {"exist": False})}]
    code, stored, _ = prepare(refs, "grefs(unc).json", **instances())
    assert (code, stored) == (0, {"text 0": 1, "text 1": 0})


def test_sentences_of_coco_annotations_that_do_not_exist_have_no_target(prepare):
    boxes = [
        {**BOX, "expression": None, "sentences": sentences({}, {"exist": False})},
        {**BOX, "id": 2, "expression": "gone", "exist": False},
        {**BOX, "id": 3, "expression": "nothing", "bbox": [], "no_target": True},
    ]
    code, stored, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json")
    assert code == 0, messages
    assert stored == {"text 0": 1, "text 1": 0, "gone": 0, "nothing": 0}


def test_a_sentence_with_an_unreadable_mark_is_left_out(prepare):
    refs = [{**REF, "sentences": sentences({}, {"exist": "perhaps"})}]
    code, stored, messages = prepare(refs, "refs(unc).json", **instances())
    assert (code, stored) == (0, {"text 0": 1})
    assert "broken sentence: 1" in messages


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        ({"attributes": {"occluded": False, "rotation": 30.0}}, "rotated box"),
        ({"rotation": -90}, "rotated box"),
        ({"angle": "12.5"}, "rotated box"),
        ({"is_negative": True}, "unread meaning"),
        ({"attributes": {"Exists": "false"}}, "unread meaning"),
        ({"ignore": 1}, "ignored record"),
        ({"deleted": True}, "ignored record"),
        ({"valid": 0}, "ignored record"),
    ],
)
def test_a_record_with_a_key_that_changes_its_meaning_is_left_out_and_reported(prepare, odd, kind):
    content = {"images": [IMAGE], "annotations": [BOX, {**BOX, "id": 2, "expression": "odd one", **odd}]}
    code, stored, messages = prepare(content, "val.json")
    assert (code, stored) == (0, {"the cup": 1})
    assert f"{kind}: 1" in messages
    assert prepare(content, "val.json", "--strict")[0] == 5


@pytest.mark.parametrize(
    "harmless",
    [
        {"attributes": {"rotation": 0.0, "colour": "red"}},
        {"rotation": 360},
        {"ignore": 0, "negative": False, "exists": True},
        {"bbox_mode": 1},
        {"bbox_format": "xywh"},
        {"negative": "the other cup", "relative": "left of the jug", "bbox_type": "tight", "normalized": False},
        {"caption_id": 5},
    ],
)
def test_other_unknown_keys_are_counted_and_change_nothing(prepare, harmless):
    code, stored, messages = prepare({"images": [IMAGE], "annotations": [{**BOX, **harmless}]}, "val.json", "--strict")
    assert (code, stored) == (0, {"the cup": 1})
    assert "unused key" in messages


@pytest.mark.parametrize(
    "declared", [{"bbox_mode": 0}, {"bbox_format": "cxcywh"}, {"normalized": True}, {"box_mode": "XYXY_ABS"}]
)
def test_a_file_that_declares_boxes_of_another_form_is_refused(prepare, declared):
    code, stored, messages = prepare({"images": [IMAGE], "annotations": [{**BOX, **declared}]}, "val.json")
    assert (code, stored) == (5, {})
    assert next(iter(declared)) in messages
    assert prepare({"images": [IMAGE], "annotations": [BOX], **declared}, "val.json")[0] == 5


def test_the_phrase_of_a_rotated_region_is_left_out(prepare):
    regions = [{"bbox": [1, 2, 30, 40], "phrase": "cup"}, {"bbox": [1, 2, 30, 40], "phrase": "jug", "rotation": 5}]
    line = {"filename": "a.jpg", "height": 80, "width": 100, "grounding": {"regions": regions}}
    code, stored, messages = prepare(json.dumps(line).encode(), "val.jsonl")
    assert (code, stored) == (0, {"cup": 1})
    assert "rotated box: 1" in messages


def test_refs_that_name_a_rotated_annotation_are_left_out(prepare):
    refs = [{**REF, "sentences": sentences({})}]
    code, _, messages = prepare(refs, "refs(unc).json", **instances(attributes={"rotation": 12}))
    assert code == 5
    assert "rotat" in messages


@pytest.mark.parametrize(
    ("caption", "spans", "expected"),
    [
        ("a red kite above a wooden bench", [[[0, 10]], [[17, 31]]], {"a red kite": 1, "a wooden bench": 1}),
        (
            "blue mug,white mug,tea pot",
            [[[0, 8]], [[9, 18]], [[19, 26]]],
            {"blue mug": 1, "white mug": 1, "tea pot": 1},
        ),
        ("two mugs and a pot", [[[0, 8]], [[0, 8]], [[13, 18]]], {"two mugs": 2, "a pot": 1}),
        ("a red kite above a wooden bench", [[0, 10], [17, 31]], {"a red kite": 1, "a wooden bench": 1}),
        ("the two mugs on the left", [[[8, 12]], [[8, 12]]], {"the two mugs on the left": 2}),
        ("the mug", [[[0, 3], [4, 7]]], {"the mug": 1}),
        ("the two mugs", [[[0, 12]], [[0, 3], [4, 7], [8, 12]]], {"the two mugs": 2}),
    ],
)
def test_annotations_that_mark_different_words_of_a_caption_are_phrases(prepare, caption, spans, expected):
    boxes = [
        {"id": number, "image_id": 1, "bbox": [10 * number, 10, 20, 20], "iscrowd": 0, "tokens_positive": span}
        for number, span in enumerate(spans)
    ]
    code, stored, messages = prepare({"images": [{**IMAGE, "caption": caption}], "annotations": boxes}, "val.json")
    assert (code, stored) == (0, expected)
    assert ("caption read as phrases" in messages) == (len(expected) > 1)


def test_a_caption_whose_phrases_cannot_be_read_is_left_out(prepare):
    images = [{**IMAGE, "id": number, "caption": f"caption {number}"} for number in (1, 2)]
    boxes = [{"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "tokens_positive": "0-7"}]
    boxes += [{"id": 2, "image_id": 1, "bbox": [1, 2, 30, 40], "tokens_positive": [0, 1, 2]}]
    boxes += [{"id": 3, "image_id": 2, "bbox": [1, 2, 30, 40]}]
    code, stored, messages = prepare({"images": images, "annotations": boxes}, "val.json")
    assert (code, stored) == (0, {"caption 2": 1})
    assert "broken row: 2" in messages


def test_the_caption_of_a_referring_expression_stays_one_expression_whatever_its_spans(prepare):
    image = {**IMAGE, "caption": "cup and jug", "dataset_name": "refcoco", "original_id": 9}
    boxes = [
        {**BOX, "id": n, "expression": None, "tokens_positive": span} for n, span in enumerate([[[0, 3]], [[8, 11]]])
    ]
    code, stored, _ = prepare({"images": [image], "annotations": boxes}, "val.json")
    assert (code, stored) == (0, {"cup and jug": 2})


CORNERS_HINT = "as corners, x1, y1, x2, y2"


@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_corners_that_are_read_as_sizes_refuse_a_file_whose_masks_contradict_them(prepare, strict):
    second = [[40, 40, 60, 40, 60, 60, 40, 60]]
    boxes = [{**BOX, "bbox": [10, 10, 30, 30], "segmentation": SQUARE}]
    boxes += [{**BOX, "id": 2, "bbox": [40, 40, 60, 60], "segmentation": second}]
    code, _, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json", *strict)
    assert code == 5
    assert CORNERS_HINT in messages
    refs = [{**REF, "sentences": sentences({})}]
    code, _, messages = prepare(refs, "refs(unc).json", *strict, **instances(bbox=[10, 10, 30, 30]))
    assert code == 5
    assert CORNERS_HINT in messages


def test_sizes_that_are_read_as_corners_refuse_a_file_whose_masks_contradict_them(prepare):
    lines = [
        {**LINE, "box": [10, 10, 20, 20], "segmentation": SQUARE},
        {**LINE, "box": [10, 30, 50, 40], "segmentation": [[10, 30, 60, 30, 60, 70, 10, 70]]},
    ]
    code, _, messages = prepare("\n".join(map(json.dumps, lines)).encode(), "val.jsonl")
    assert code == 5
    assert "box_xywh" in messages


@pytest.mark.parametrize(
    ("boxes", "hint"),
    [
        ([[20, 20, 20, 20], [50, 50, 20, 20]], "the centre of the box"),
        ([[60, 20, 10, 5], [70, 10, 10, 5]], "y comes before x"),
        ([[70, 70, 9, 9], [5, 70, 9, 9]], "belong to the same objects"),
    ],
)
def test_boxes_of_other_forms_refuse_a_file_whose_masks_contradict_them(prepare, boxes, hint):
    masks = [(10, 10, 30, 30), (40, 40, 60, 60)] if "before" not in hint else [(20, 60, 25, 70), (10, 70, 15, 80)]
    rows = [
        {**BOX, "id": number, "bbox": box, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        for number, (box, (x1, y1, x2, y2)) in enumerate(zip(boxes, masks, strict=True))
    ]
    code, _, messages = prepare({"images": [IMAGE], "annotations": rows}, "val.json")
    assert code == 5
    assert hint in messages


def test_one_box_of_several_that_contradicts_its_mask_is_only_reported(prepare):
    lines = [{**LINE, "box": [10, 10, 30, 30], "segmentation": SQUARE}] * 3
    lines += [{**LINE, "box": [50, 50, 70, 70], "segmentation": SQUARE}]
    code, _, messages = prepare("\n".join(map(json.dumps, lines)).encode(), "val.jsonl")
    assert code == 0
    assert "mask disagrees with box: 1" in messages


def test_masks_of_other_objects_refuse_the_file_where_they_are_many_or_it_is_strict(prepare):
    lines = [{**LINE, "box": [60, 50, 70, 70], "segmentation": SQUARE}]
    assert prepare("\n".join(map(json.dumps, lines)).encode(), "val.jsonl")[0] == 0
    assert prepare("\n".join(map(json.dumps, lines)).encode(), "val.jsonl", "--strict")[0] == 5
    assert prepare("\n".join(map(json.dumps, lines * 2)).encode(), "val.jsonl")[0] == 5


def test_boxes_in_parts_of_the_image_refuse_a_coco_file(prepare):
    boxes = [{**BOX, "bbox": [0.1, 0.2, 0.3, 0.4]}, {**BOX, "id": 2, "bbox": [0.5, 0.5, 0.5, 0.25]}]
    code, _, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json")
    assert code == 5
    assert "in pixels" in messages


def test_boxes_that_would_fit_as_corners_only_are_doubted(prepare):
    corners = [[x, y, x + 35, y + 30] for x, y in zip(range(0, 30, 3), range(0, 30, 3), strict=True)]
    corners = [[x1, y1, min(2 * x2, 100), min(2 * y2, 80)] for x1, y1, x2, y2 in corners]
    boxes = [{**BOX, "id": n, "expression": f"cup {n}", "bbox": box} for n, box in enumerate(corners)]
    content = {"images": [IMAGE], "annotations": boxes}
    code, _, messages = prepare(content, "val.json")
    assert code == 0
    assert "boxes may be corners: 1" in messages
    assert prepare(content, "val.json", "--strict")[0] == 5


def test_bytes_that_are_not_utf8_are_reported_and_never_stored_as_other_letters(prepare):
    good = json.dumps({**LINE, "box": [1, 2, 30, 40]}).encode()
    bad = good.replace(b"the cup", "caf\xe9".encode("cp1252"))
    code, stored, messages = prepare(good + b"\n" + bad + b"\n", "val.jsonl")
    assert (code, stored) == (0, {"the cup": 1})
    assert "0xE9, is not UTF-8" in messages
    boxes = [BOX, {**BOX, "id": 2, "expression": "NAME"}]
    content = json.dumps({"images": [IMAGE], "annotations": boxes}).encode()
    code, stored, messages = prepare(content.replace(b"NAME", "\u8d64\u3044".encode("shift-jis")), "val.json")
    assert (code, stored) == (0, {"the cup": 1})
    assert "not UTF-8" in messages
    refs = json.dumps([{**REF, "sentences": sentences({})}]).encode()
    code, stored, messages = prepare(refs.replace(b"text 0", b"caf\xe9"), "refs(unc).json", **instances())
    assert code == 5
    assert "not UTF-8" in messages


def test_a_rotated_box_of_an_xml_file_is_not_read_as_upright(refcli, tmp_path):
    for folder in ("Sentences", "Annotations"):
        (tmp_path / folder).mkdir()
    box = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>59</xmax><ymax>79</ymax></bndbox>"
    for number, extra in ((11, "<pose>left</pose>"), (12, "<angle>0.3</angle>")):
        (tmp_path / "Sentences" / f"{number}.txt").write_text(f"[/EN#1/people Man {number}] waits .\n")
        xml = f"<annotation><object><name>1</name>{extra}{box}</object></annotation>"
        (tmp_path / "Annotations" / f"{number}.xml").write_text(xml)
    (tmp_path / "val.txt").write_text("11\n12\n")
    arguments = ("--from", tmp_path / "Annotations", "--format", "flickr", "--name", "m", "--out", tmp_path / "store")
    code, _, messages = refcli("prepare-data", *arguments)
    assert code == 0, messages
    assert Store(tmp_path / "store").split("m:val").column("expression").to_pylist() == ["Man 11"]
    assert "rotated boxes are not read" in messages


@pytest.mark.parametrize("mark", [{"exists": False}, {"negative": True}, {"is_exist": 0}, {"no_referent": "true"}])
def test_a_sentence_of_an_annotation_with_an_unsupported_meaning_is_left_out(prepare, mark):
    boxes = [BOX, {**BOX, "id": 2, "expression": None, "sentences": sentences(mark, {})}]
    code, stored, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json")
    assert (code, stored) == (0, {"the cup": 1})
    assert "unread meaning: 1" in messages


def test_unknown_keys_of_the_sentences_of_annotations_are_counted(prepare):
    boxes = [{**BOX, "expression": None, "sentences": sentences({"source": "crowd"}, {"source": "crowd"})}]
    code, stored, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json")
    assert (code, stored) == (0, {"text 0": 1, "text 1": 1})
    assert "sentence key 'source', 2 times" in messages


@pytest.mark.parametrize(
    ("mark", "is_read"),
    [
        ({"bbox_format": "xyxy"}, True),
        ({"bbox_mode": 0}, True),
        ({"bbox_format": "xywh"}, False),
        ({"bbox_mode": "XYWH_ABS"}, False),
        ({"bbox_mode": 1}, False),
        ({"box_format": "cxcywh"}, False),
        ({"bbox_format": "coco"}, False),
    ],
)
def test_a_key_that_names_the_form_of_boxes_is_compared_with_the_form_of_the_format(prepare, mark, is_read):
    region = {"bbox": [10, 10, 30, 30], "phrase": "the cup", **mark}
    line = {"filename": "a.jpg", "width": 100, "height": 80, "grounding": {"caption": "", "regions": [region]}}
    code, stored, messages = prepare(json.dumps(line).encode(), "val.jsonl")
    assert (code, stored) == ((0, {"the cup": 1}) if is_read else (5, {}))
    assert is_read or "that form are not read" in messages


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ({"rotation": 30}, "rotated boxes are not read"),
        ({"exist": False}, "may have no target"),
        ({"ignore": 1}, "marked as unusable"),
        ({"angle": 0}, "the key 'angle' is unknown"),
    ],
)
def test_a_key_of_own_lines_that_changes_their_meaning_is_named_with_its_meaning(prepare, mark, reason):
    lines = [{**LINE, "box": [1, 2, 30, 40]}, {**LINE, "expression": "odd", "box": [1, 2, 30, 40], **mark}]
    code, stored, messages = prepare("\n".join(map(json.dumps, lines)).encode(), "val.jsonl")
    assert (code, stored) == (0, {"the cup": 1})
    assert reason in messages


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "second corner"),
        (lambda x, y, w, h: [y, x, h, w], "write x first"),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centre of the box"),
    ],
)
def test_a_few_boxes_that_fit_in_both_forms_do_not_hide_the_form_of_the_others(prepare, form, reason):
    true = [(0, 0, 20 + n, 20 + n) for n in range(4)] + [(20 + 5 * n, 40, 25, 10) for n in range(8)]
    boxes = [
        {
            **BOX,
            "id": n,
            "expression": f"cup {n}",
            "bbox": form(x, y, w, h) if n >= 4 else [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for n, (x, y, w, h) in enumerate(true)
    ]
    code, _, messages = prepare({"images": [IMAGE], "annotations": boxes}, "val.json")
    assert code == 5
    assert "contradict the masks: 8 of 12" in messages
    assert reason in messages


def test_one_odd_box_among_a_few_does_not_refuse_a_file(prepare):
    boxes = [
        {**BOX, "id": n, "expression": f"cup {n}", "bbox": [10, 10, 30 if n else 50, 20], "segmentation": SQUARE}
        for n in range(4)
    ]
    assert prepare({"images": [IMAGE], "annotations": boxes}, "val.json")[0] == 0


def test_a_sentence_without_the_requested_text_is_reported_and_only_all_of_them_refuse_a_file(prepare):
    refs = [{**REF, "sentences": sentences({}, {"sent": None})}]
    code, stored, messages = prepare(refs, "refs(unc).json", **instances())
    assert (code, stored) == (0, {"text 0": 1})
    assert "sentence 1 has no 'sent' (--set text=raw takes the other form)" in messages
    refs = [{**REF, "sentences": sentences({"sent": None}, {"sent": None})}]
    code, _, messages = prepare(refs, "refs(unc).json", "--force", **instances())
    assert code == 5
    assert "--set text=raw takes the other form" in messages
