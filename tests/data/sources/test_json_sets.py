"""What is particular to data sets of JSON lines and lists: run lengths as lists, rejections, boxes in percent."""

from __future__ import annotations

import json

import pytest
from corpora.json_sets import LEFT, RIGHT, centred, gseval_row, list_mask, percent, text_mask

from refcli.data.preparation.finish import region_mask
from refcli.data.sources import gseval, humanref, mmr, openref, sk_vg
from refcli.data.sources.record import Problems
from refcli.errors import DataError
from refcli.geometry.masks import mask_box

PERSON = {"id": 7, "image_name": "a.jpg", "domain": "position", "sub_domain": "x", "referring": "the left one"}
CUP = {"image": "a.jpg", "relation_type": "single", "positive": "the cup", "negative": "the fork", "bbox_num": 1}


def read(module, path, *rows, problems=None, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = Problems() if problems is None else problems
    source = module.SOURCE
    return list(source.read({"test": path}, source.settings(**settings), dataset="mine", problems=problems))


def test_the_extent_of_a_mask_is_its_box_whether_its_run_lengths_are_a_list_or_a_text(tmp_path):
    person = PERSON | {"answer_boxes": [LEFT, RIGHT], "answer_segmentations": [list_mask(LEFT), text_mask(RIGHT)]}

    (record,) = read(humanref, tmp_path / "a.jsonl", person)

    assert [mask_box(region_mask(region, 80, 100)) for region in record.regions] == [LEFT, RIGHT]
    assert [region.box_xyxy for region in record.regions] == [LEFT, RIGHT]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domain": "rejection", "answer_boxes": [LEFT]}, "'rejection', but there are 1 answer_boxes"),
        ({"answer_boxes": []}, "'position', but there are 0 answer_boxes"),
        ({"answer_boxes": [LEFT, RIGHT], "answer_segmentations": [list_mask(LEFT)]}, "2 boxes and 1 masks"),
        ({"answer_boxes": [[0.1, 0.2, 0.3, 0.4]]}, "fractions of the image"),
        ({"answer_boxes": [LEFT], "box_format": "xywh"}, "boxes in that form are not read"),
        ({"answer_boxes": [LEFT], "has_target": False}, "the expression may have no target"),
    ],
)
def test_a_line_of_humanref_that_contradicts_itself_or_is_of_another_form_is_refused(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        read(humanref, tmp_path / "a.jsonl", PERSON | fields)


def test_the_image_of_a_rejection_has_the_size_of_its_file(tmp_path):
    none = {"answer_boxes": [], "answer_segmentations": []}

    (record,) = read(humanref, tmp_path / "a.jsonl", PERSON | none | {"domain": "rejection"})

    assert (record.regions, record.kind) == ((), "rejection")
    assert (record.image.width, record.image.height) == (None, None)


def test_boxes_in_percent_become_pixels_of_the_stated_size(tmp_path):
    proposal = percent(LEFT) | {"original_width": 1000, "original_height": 400}

    positive, negative = read(openref, tmp_path / "a.json", CUP | {"proposal": [proposal]})

    assert [region.box_xyxy for region in positive.regions] == [(100.0, 100.0, 300.0, 300.0)]
    assert (positive.image.width, positive.image.height) == (1000, 400)
    assert (positive.kind, negative.kind) == ("single", "single_negative")
    assert negative.regions == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"proposal": [percent(LEFT) | {"width": 300}]}, "beyond 100 percent"),
        ({"proposal": [percent(LEFT)], "relation_type": "none"}, "'none' with 1 boxes"),
        ({"proposal": [], "bbox_num": 0}, "'single' with 0 boxes"),
        ({"proposal": [percent(LEFT)], "relation_type": "many"}, "it is single, multi, none"),
        ({"proposal": [percent(LEFT) | {"rotation": 30}]}, "rotated boxes are not read"),
    ],
)
def test_a_record_of_openref_that_cannot_be_right_is_refused(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        read(openref, tmp_path / "a.json", CUP | fields)


def test_the_classes_of_gseval_keep_their_numbers_as_kinds(tmp_path):
    problems = Problems()

    records = read(
        gseval, tmp_path / "a.jsonl", gseval_row(1, "x", LEFT), gseval_row(2, "y", RIGHT, class_id=2), problems=problems
    )

    assert [record.kind for record in records] == ["class_4", "class_2"]
    assert [record.image.names[0] for record in records] == [f"unlabeled2017/{one:012d}.jpg" for one in (1, 2)]
    assert not problems.counts


@pytest.mark.parametrize(("knowledge", "text"), [(False, "her cup"), (True, "her cup. Ann drinks tea.")])
def test_the_knowledge_of_sk_vg_follows_the_expression_only_if_it_is_wanted(tmp_path, knowledge, text):
    row = {"image_name": "a.jpg", "knowledge": "Ann drinks tea.", "ref_exp": "her cup", "bbox": centred(LEFT)}

    (record,) = read(sk_vg, tmp_path / "a.json", row, knowledge=knowledge)

    assert record.expressions[0].text == text


def test_the_box_of_sk_vg_is_given_by_its_centre_and_a_file_may_hold_all_splits(tmp_path):
    box = {"x": 50, "y": 40, "width": 20, "height": 10}
    row = {"image_name": "a.jpg", "knowledge": "", "ref_exp": "her cup", "bbox": box}
    path = tmp_path / "annotations.json"

    (record,) = read(sk_vg, path, {"train": [row | {"ref_exp": "x"}], "test": [row]})

    assert record.expressions[0].text == "her cup"
    assert record.regions[0].box_xyxy == (40.0, 35.0, 60.0, 45.0)
    with pytest.raises(DataError, match="no list 'test'"):
        read(sk_vg, path, {"train": [row]})


def test_an_expression_of_openref_may_be_missing_but_not_both(tmp_path):
    row = {"image": "a.jpg", "relation_type": "none", "negative": "the fork"}

    (record,) = read(openref, tmp_path / "a.json", row)

    assert (record.expressions[0].text, record.kind, record.regions) == ("the fork", "none_negative", ())
    with pytest.raises(DataError, match="neither a positive nor a negative"):
        read(openref, tmp_path / "a.json", row | {"negative": ""})


def test_a_question_of_mmr_with_an_answer_without_a_mask_is_left_out_and_reported(tmp_path):
    whole, lost = {"segmentation": list_mask(LEFT), "bbox": LEFT}, {"segmentation": None, "bbox": RIGHT}
    row = {"file_name": "000000000007.jpg", "height": 80, "width": 100, "questions": ["one", "two"], "annotations": []}
    problems = Problems()

    (record,) = read(mmr, tmp_path / "a.json", row | {"answers": [[whole, lost], [whole]]}, problems=problems)

    assert record.expressions[0].text == "two"
    assert problems.counts == {"broken_answer": 1}
    with pytest.raises(DataError, match="2 questions and 1 answers"):
        read(mmr, tmp_path / "b.json", row | {"answers": [[whole]]})
