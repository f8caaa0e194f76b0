"""COCO-style JSON: captions, phrases and annotations become expressions, and no number changes its meaning."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from refcli.data.sources.coco.grounding import SOURCE, CocoSettings, sniff_coco
from refcli.data.sources.record import Problems, RawRecord
from refcli.errors import DataError

DOG = "COCO_train2014_000000000009.jpg"


def write(folder: Path, name: str, images: list[dict], annotations: list[dict]) -> Path:
    path = folder / name
    path.write_text(json.dumps({"info": [], "licenses": [], "images": images, "annotations": annotations}))
    return path


def read(path: Path, problems: Problems | None = None, instances: Path | None = None, **settings) -> list[RawRecord]:
    files = {"train": path} | ({"instances": instances} if instances else {})
    return list(
        SOURCE.read(
            files, CocoSettings(**settings), dataset="mine", problems=problems if problems is not None else Problems()
        )
    )


def texts(records: list[RawRecord]) -> list[str]:
    return [expression.text for record in records for expression in record.expressions]


def refcoco_image(number: int, caption: str, **fields) -> dict:
    fixed = {"id": number, "file_name": DOG, "height": 480, "width": 640, "caption": caption}
    return fixed | {"dataset_name": "refcoco", "original_id": 9, "tokens_negative": [[0, len(caption)]]} | fields


def box(image_id: int, bbox: list[float], **fields) -> dict:
    return {"id": 100 + image_id, "image_id": image_id, "bbox": bbox, "iscrowd": 0, "category_id": 1} | fields


def test_a_refexp_caption_is_one_expression_whatever_its_noun_span(tmp_path):
    file = write(
        tmp_path,
        "finetune_refcoco_val.json",
        [refcoco_image(7, "left dog in grass")],
        [box(7, [10.5, 20, 30, 40.25], tokens_positive=[[5, 8]], original_id=1877288)],
    )
    (record,) = read(file)
    assert [(one.id, one.text) for one in record.expressions] == [("7", "left dog in grass")]
    assert record.split == "train"
    assert record.image.key == "coco:9"
    assert DOG in record.image.names and "000000000009.jpg" in record.image.names
    assert (record.image.width, record.image.height) == (640, 480)
    assert record.regions[0].box_xyxy == (10.5, 20, 40.5, 60.25)
    assert record.regions[0].source_id == "coco:1877288"


def test_gzip_and_string_ids_are_read_alike(tmp_path):
    image = refcoco_image(7, "left dog") | {"id": "7", "original_id": "9", "file_name": "x.jpg"}
    plain = write(tmp_path, "a.json", [image], [box(7, [1, 2, 3, 4])])
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (record,) = read(packed)
    assert record.image.key == "coco:9"
    assert record.regions == read(plain)[0].regions
    assert sniff_coco(packed)


WHOLE_MARK = {"iscrowd": -1, "category_id": -1, "area": -1, "empty": True}


@pytest.mark.parametrize("mark", [WHOLE_MARK, {"iscrowd": -1}, {"empty": True}, {"category_id": -1}])
def test_the_dummy_annotation_of_grefcoco_marks_no_target(tmp_path, mark):
    file = write(tmp_path, "f.json", [refcoco_image(1, "a zebra")], [box(1, [0, 0, 0, 0], **mark)])
    (record,) = read(file)
    assert record.regions == ()


def test_the_type_of_a_negative_marks_no_target_beside_a_box_and_an_unclear_type_leaves_the_caption_out(tmp_path):
    images = [refcoco_image(number, text) for number, text in enumerate(("a dog", "a cat", "a cow", "a hen"), start=1)]
    rows = [
        box(1, [1, 1, 5, 5], negative_type="attribute", level=2),
        box(2, [1, 1, 5, 5], id=2, negative_type=None, level=3),
        box(3, [1, 1, 5, 5], id=3, negative_type="none"),
        box(4, [1, 1, 5, 5], id=4, negative_cate="text"),
    ]
    problems = Problems()
    records = read(write(tmp_path, "f.json", images, rows), problems, kind="level")
    assert [(one.expressions[0].text, len(one.regions), one.kind) for one in records] == [
        ("a dog", 0, "level_2"),
        ("a cat", 1, "level_3"),
    ]
    assert problems.counts == {"broken_row": 2, "target_of_broken_row": 2}


def test_category_minus_one_with_a_real_box_is_a_target(tmp_path):
    file = write(tmp_path, "f.json", [refcoco_image(1, "a dog")], [box(1, [1, 1, 5, 5], category_id=-1)])
    assert len(read(file)[0].regions) == 1


def test_a_caption_without_annotations_is_left_out_and_counted(tmp_path):
    images = [refcoco_image(1, "a dog"), refcoco_image(2, "a cat")]
    problems = Problems()
    records = read(write(tmp_path, "f.json", images, [box(1, [1, 1, 5, 5])]), problems)
    assert texts(records) == ["a dog"]
    assert problems.counts == {"caption_without_box": 1}


def test_several_annotations_of_a_caption_are_its_regions_crowds_included(tmp_path):
    rows = [box(1, [0, 0, 5, 5]), box(1, [10, 10, 5, 5], id=2, iscrowd=1)]
    (record,) = read(write(tmp_path, "f.json", [refcoco_image(1, "both dogs")], rows))
    assert [region.box_xyxy for region in record.regions] == [(0, 0, 5, 5), (10, 10, 15, 15)]


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([refcoco_image(1, "a"), refcoco_image(1, "b")], [box(1, [1, 1, 5, 5])], "two images"),
        ([refcoco_image(1, "a")], [box(1, [1, 1, 5, 5], empty=True)], "no target but has a box"),
        ([refcoco_image(1, "a")], [box(1, [1, 1, 5, 5]), box(1, [0, 0, 0, 0], empty=True)], "has a target and"),
        ([refcoco_image(1, "a")], [box(1, [1, 1, 5])], "3 numbers"),
        ([refcoco_image(1, "a", file_name="")], [box(1, [1, 1, 5, 5])], "file_name"),
        (
            [{"id": 1, "file_name": "a.jpg"}],
            [box(1, [1, 1, 5, 5], expression="x"), box(1, [2, 2, 5, 5], expression="y")],
            "twice",
        ),
        ([refcoco_image(1, "a")], [], "no expression"),
        ([refcoco_image(1, "a")], [{"id": 1, "bbox": [1, 1, 5, 5]}], "image_id"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, images, annotations, message):
    with pytest.raises(DataError, match=message) as error:
        read(write(tmp_path, "f.json", images, annotations))
    assert "f.json" in str(error.value)


def flickr_image_row(number: int, caption: str) -> dict:
    return {
        "id": number,
        "file_name": "1000092795.jpg",
        "height": "500",
        "width": "333",
        "caption": caption,
        "dataset_name": "flickr",
        "original_img_id": 1000092795,
        "sentence_id": 0,
        "tokens_negative": [[0, len(caption)]],
        "tokens_positive_eval": [[[0, 14]], [[20, 31]]],
    }


CAPTION = "Two young guys with shaggy hair look at their hands"
FLICKR_BOXES = [
    # The XML's first guy is [159, 110, 261, 373], inclusive and counted from 1.
    {"id": 1, "image_id": 1, "bbox": [159, 110, 102, 263], "iscrowd": 0, "tokens_positive": [[0, 14]]},
    {"id": 2, "image_id": 1, "bbox": [20, 30, 9, 9], "iscrowd": 0, "tokens_positive": [[0, 14], [20, 31]]},
]


def test_flickr_phrases_get_all_their_boxes_and_boxes_count_from_zero(tmp_path):
    rows = [flickr_image_row(1, CAPTION), flickr_image_row(2, "A man")]
    problems = Problems()
    guys, hair = read(write(tmp_path, "final_flickr_separateGT_val.json", rows, FLICKR_BOXES), problems)
    assert texts([guys, hair]) == ["Two young guys", "shaggy hair"]
    assert [region.box_xyxy for region in guys.regions] == [(158, 109, 261, 373), (19, 29, 29, 39)]
    assert [region.box_xyxy for region in hair.regions] == [(19, 29, 29, 39)]
    assert guys.image.key == "flickr30k:1000092795"
    assert guys.image.names == ("1000092795.jpg",)
    assert (guys.image.width, guys.image.height) == (333, 500)
    assert guys.expressions[0].id != hair.expressions[0].id
    assert problems.counts == {"caption_without_box": 1}


def test_flickr_is_recognised_by_the_published_file_name_too_and_can_be_kept_as_it_is(tmp_path):
    row = flickr_image_row(1, CAPTION)
    del row["dataset_name"]
    named = write(tmp_path, "final_flickr_mergedGT_test.json", [row], FLICKR_BOXES)
    assert read(named)[0].regions[0].box_xyxy == (158, 109, 261, 373)
    assert read(named, flickr_boxes="keep")[0].regions[0].box_xyxy == (159, 110, 261, 373)
    mine = write(tmp_path, "my_flickr_photos.json", [row], FLICKR_BOXES)
    assert read(mine)[0].regions[0].box_xyxy == (159, 110, 261, 373)
    assert read(mine)[0].image.key == "mine:1000092795.jpg"
    assert read(mine, flickr_boxes="correct")[0].regions[0].box_xyxy == (158, 109, 261, 373)


def test_a_requested_unit_takes_precedence(tmp_path):
    file = write(tmp_path, "f.json", [flickr_image_row(1, CAPTION)], FLICKR_BOXES)
    (whole,) = read(file, unit="caption")
    assert texts([whole]) == [CAPTION]
    assert len(whole.regions) == 2
    noun = write(tmp_path, "g.json", [refcoco_image(7, "left dog")], [box(7, [1, 1, 2, 2], tokens_positive=[[5, 8]])])
    assert texts(read(noun, unit="phrase")) == ["dog"]


def test_phrases_of_a_caption_without_a_data_set_name_are_divided_by_their_words(tmp_path):
    image = {"id": 1, "file_name": "0001.jpg", "width": 640, "height": 480, "caption": "a red cup on a plate"}
    other = {**image, "id": 2, "caption": "a red cup is empty"}
    rows = [
        box(1, [0, 0, 50, 50], tokens_positive=[[0, 9]], query="a red cup"),
        box(1, [100, 0, 50, 50], id=2, tokens_positive=[[13, 20]], query="a plate"),
        box(2, [9, 0, 50, 50], id=3, tokens_positive=[[0, 9]], query="a red cup"),
    ]
    problems = Problems()
    records = read(write(tmp_path, "instances_test.json", [image, other], rows), problems)
    assert [(texts([one]), [region.box_xyxy for region in one.regions]) for one in records] == [
        (["a red cup"], [(0, 0, 50, 50)]),
        (["a plate"], [(100, 0, 150, 50)]),
        (["a red cup"], [(9, 0, 59, 50)]),
    ]
    assert problems.counts == {"caption_read_as_phrases": 2}


def mixed_image(number: int, name: str, source: str, caption: str) -> dict:
    return {
        "id": number,
        "file_name": name,
        "height": 500,
        "width": 375,
        "original_id": "581857" if source == "coco" else name.removesuffix(".jpg"),
        "caption": caption,
        "data_source": source,
        "dataset_name": "mixed",
    }


def test_mixed_words_of_one_phrase_are_joined_and_images_keep_their_family(tmp_path):
    images = [
        mixed_image(1, "2334951.jpg", "vg", "one man wearing pink tie."),
        mixed_image(2, "COCO_train2014_000000581857.jpg", "coco", "a red cup. a fork."),
    ]
    rows = [
        box(1, [33, 13, 214, 485], tokens_positive=[[4, 7], [0, 3]]),
        box(1, [50, 60, 20, 90], id=2, tokens_positive=[[16, 20], [21, 24]]),
        box(2, [1, 2, 3, 4], tokens_positive=[[0, 9], [11, 17]]),
        box(2, [5, 6, 7, 8], id=4, tokens_positive=[[11, 17]]),
    ]
    records = read(write(tmp_path, "final_mixed_train_no_coco.json", images, rows))
    assert texts(records) == ["one man", "pink tie", "a red cup", "a fork"]
    assert [len(record.regions) for record in records] == [1, 1, 1, 2]
    assert records[0].image.key == "mine:2334951.jpg"
    assert records[2].image.key == "coco:581857"
    assert records[0].regions[0].box_xyxy == (33, 13, 247, 498)


def test_spans_without_words_are_counted(tmp_path):
    rows = [
        box(1, [1, 1, 5, 5], tokens_positive=[[0, 3]]),
        box(1, [1, 1, 5, 5], id=2, tokens_positive=[[3, 99]]),
        box(1, [1, 1, 5, 5], id=3, tokens_positive=[[3, 3]]),
        box(1, [1, 1, 5, 5], id=4),
        box(8, [1, 1, 5, 5], id=5),
    ]
    problems = Problems()
    records = read(write(tmp_path, "f.json", [mixed_image(1, "5.jpg", "vg", "a mug here")], rows), problems)
    assert texts(records) == ["a m"]
    assert problems.counts == {
        "span_outside_caption": 2,
        "annotation_without_phrase": 1,
        "annotation_without_image": 1,
    }


def test_plain_coco_annotations_carry_expressions_under_any_documented_key(tmp_path):
    polygon = [[1, 1, 5, 1, 5, 5]]
    rows = [
        box(1, [1, 2, 3, 4], id=1, expression="a"),
        box(1, [1, 2, 3, 4], id=2, expressions=["b", "c"], segmentation=polygon),
        box(1, [1, 2, 3, 4], id=3, caption="d"),
        box(1, [1, 2, 3, 4], id=4, sentences=[{"sent": "e", "raw": "E!"}, {"raw": "f"}]),
        box(1, [1, 2, 3, 4], id=5, referring=["g"], segmentation=[]),
        {"id": 6, "image_id": 1, "expression": "h", "segmentation": polygon},
        box(1, [1, 2, 3, 4], id=7, expression="i", caption="a photo"),
        box(1, [1, 2, 3, 4], id=8),
        {"id": 9, "image_id": 1, "expression": "j"},
        box(1, [], id=10, expression="k", empty=True),
    ]
    problems = Problems()
    image = {"id": 1, "file_name": "shop\\a.png", "width": 10, "height": 8}
    records = read(write(tmp_path, "mine.json", [image], rows), problems)
    assert texts(records) == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "k"]
    assert records[0].image.key == "mine:shop/a.png"
    assert json.loads(records[1].regions[0].segmentation) == polygon
    assert records[4].regions[0].segmentation is None
    assert records[5].regions[0].box_xyxy is None
    assert records[-1].regions == ()
    assert problems.counts == {
        "several_expression_keys": 1,
        "annotation_without_expression": 1,
        "annotation_without_box": 1,
    }


def test_masks_are_joined_from_instances_by_the_annotations_original_id(tmp_path):
    polygon = [[1, 1, 5, 1, 5, 5]]
    known = {"id": 55, "image_id": 9, "bbox": [1, 1, 4, 4], "category_id": 1, "segmentation": polygon}
    instances = write(tmp_path, "instances.json", [{"id": 9, "file_name": DOG, "height": 480, "width": 640}], [known])
    images = [refcoco_image(1, "a"), refcoco_image(2, "b")]
    rows = [box(1, [1, 1, 4, 4], original_id=55), box(2, [1, 1, 4, 4], original_id="56")]
    problems = Problems()
    first, second = read(write(tmp_path, "f.json", images, rows), problems, instances)
    assert json.loads(first.regions[0].segmentation) == polygon
    assert second.regions[0].segmentation is None
    assert problems.counts == {"mask_missing": 1}


def test_a_mask_of_another_image_is_refused(tmp_path):
    known = {"id": 55, "image_id": 8, "bbox": [1, 1, 4, 4], "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    instances = write(tmp_path, "instances.json", [], [known])
    file = write(tmp_path, "f.json", [refcoco_image(1, "a")], [box(1, [1, 1, 4, 4], original_id=55)])
    with pytest.raises(DataError, match="is of image 8"):
        read(file, instances=instances)


def test_captions_of_images_are_not_expressions(tmp_path):
    file = write(tmp_path, "captions.json", [{"id": 1, "file_name": DOG}], [{"id": 1, "image_id": 1, "caption": "A"}])
    problems = Problems()
    with pytest.raises(DataError, match="no expression"):
        read(file, problems)
    assert problems.counts == {"annotation_without_box": 1}


def test_sniff_recognises_coco_and_nothing_else(tmp_path):
    assert sniff_coco(write(tmp_path, "a.json", [refcoco_image(1, "a")], []))
    other = tmp_path / "b.json"
    for text in ['[{"images": []}]', '{"image": "a.jpg"}', '{"images": 3}', "", "\x80\x02]"]:
        other.write_text(text, encoding="latin-1")
        assert not sniff_coco(other)
    assert not sniff_coco(tmp_path)
    assert not sniff_coco(tmp_path / "nowhere.json")
