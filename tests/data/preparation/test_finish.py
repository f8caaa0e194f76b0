"""Raw records become examples; what is wrong is left out or told, never silent."""

import json

import pytest
from PIL import Image

from refcli.data.preparation.finish import Finishing, PlacedRecord, finish
from refcli.data.preparation.text import repair_text
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion

SQUARE = json.dumps([[10, 10, 30, 10, 30, 30, 10, 30]]).encode()


def record(*regions, texts=("the cat",), width=100, height=80, where="refs.p: ref 3"):
    expressions = tuple(RawExpression(f"3/{number}", text) for number, text in enumerate(texts))
    return RawRecord("val", RawImage("coco:7", ("7.jpg",), width, height), expressions, tuple(regions), where)


def finished(raw, path=None, check_images=False):
    problems = Problems()
    examples = list(finish([PlacedRecord(raw, "val/7.jpg", path)], Finishing("pets", check_images), problems))
    return examples, problems


def test_every_expression_becomes_an_example_with_the_regions_of_its_record():
    examples, problems = finished(record(RawRegion((10.0, 10.0, 30.0, 30.0), SQUARE, "coco:5"), texts=("a cat", "pet")))
    assert [(one.id, one.expression) for one in examples] == [("pets/3/0", "a cat"), ("pets/3/1", "pet")]
    one = examples[0]
    assert (one.dataset, one.split, one.image, one.image_id) == ("pets", "val", "val/7.jpg", "coco:7")
    assert one.regions[0].box_xyxy == (10.0, 10.0, 30.0, 30.0)
    assert one.regions[0].source_id == "coco:5"
    assert one.regions[0].mask.size == (80, 100)
    assert not problems.counts


def test_no_regions_stay_no_regions():
    examples, problems = finished(record())
    assert examples[0].regions == ()
    assert not problems.counts


def test_a_box_may_come_from_its_mask():
    examples, _ = finished(record(RawRegion(None, SQUARE)))
    assert examples[0].regions[0].box_xyxy == (10.0, 10.0, 30.0, 30.0)


def test_a_box_is_clipped_to_its_image_and_listed_if_it_reached_far():
    examples, problems = finished(record(RawRegion((-3.0, 10.0, 100.2, 80.0))))
    assert examples[0].regions[0].box_xyxy == (0.0, 10.0, 100.0, 80.0)
    assert problems.counts == {"clipped_box": 1}
    _, problems = finished(record(RawRegion((0.0, 10.0, 100.2, 80.0))))
    assert not problems.counts


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((30.0, 10.0, 20.0, 40.0), "inverted_box"),
        ((30.0, 10.0, 30.0, 40.0), "degenerate_box"),
        ((float("nan"), 10.0, 30.0, 40.0), "box_not_finite"),
        ((100.0, 10.0, 120.0, 40.0), "box_outside_the_image"),
        (None, "region_without_box"),
    ],
)
def test_an_impossible_box_drops_its_record_and_is_named(box, kind):
    examples, problems = finished(record(RawRegion((1.0, 1.0, 5.0, 5.0)), RawRegion(box, source_id="coco:9")))
    assert examples == []
    assert problems.counts == {kind: 1, "dropped_record": 1}
    assert "refs.p: ref 3" in problems.places[kind][0]
    assert "coco:9" in problems.places[kind][0]


def test_a_mask_that_lies_elsewhere_than_its_box_is_told_and_kept():
    examples, problems = finished(record(RawRegion((50.0, 40.0, 90.0, 70.0), SQUARE)))
    assert examples[0].regions[0].mask is not None
    assert problems.counts == {"mask_disagrees_with_box": 1}


def test_a_broken_or_empty_mask_is_told_and_its_box_kept():
    for text, kind in [
        (b"[[1,", "unreadable_mask"),
        (b"[]", "empty_mask"),
        (b"[[200,200,210,200,210,210]]", "empty_mask"),
    ]:
        examples, problems = finished(record(RawRegion((10.0, 10.0, 30.0, 30.0), text)))
        assert examples[0].regions[0].mask is None
        assert problems.counts == {kind: 1}


def test_texts_are_repaired_and_empty_ones_dropped_and_counted():
    mojibake = "caf\u00e9 \u2122".encode().decode("latin-1")
    examples, problems = finished(record(texts=("  the\tcat ", "\x00", " ", mojibake)))
    assert [one.expression for one in examples] == ["the cat", "caf\u00e9 \u2122"]
    assert problems.counts == {"empty_expression": 2, "repaired_text": 1}


def test_text_that_is_right_stays_as_it_is():
    for text in ("the caf\u00e9", "Gr\u00f6\u00dfe \u732b", "2nd person's jacket", "\u201cquoted\u201d \u2122"):
        assert repair_text(text) == text
    assert repair_text("cafe\u0301") == "caf\u00e9"


def test_unknown_sizes_come_from_the_picture_or_stay_unknown(tmp_path):
    path = tmp_path / "7.jpg"
    Image.new("RGB", (60, 40)).save(path)
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0), SQUARE), width=None, height=None)
    examples, _ = finished(raw, path)
    assert (examples[0].width, examples[0].height) == (60, 40)
    examples, problems = finished(raw)
    assert (examples[0].width, examples[0].height, examples[0].regions[0].mask) == (0, 0, None)
    assert problems.counts == {"mask_in_picture_of_unknown_size": 1}


def test_checked_pictures_must_decode_and_have_the_annotated_size(tmp_path):
    right, small, broken = (tmp_path / name for name in ("right.png", "small.png", "broken.jpg"))
    Image.new("RGB", (100, 80)).save(right)
    Image.new("RGB", (50, 40)).save(small)
    Image.new("RGB", (100, 80)).save(broken, "JPEG")
    broken.write_bytes(broken.read_bytes()[:300])
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0)))
    assert len(finished(raw, right, check_images=True)[0]) == 1
    for path in (small, broken):
        examples, problems = finished(raw, path, check_images=True)
        assert examples == []
        assert problems.counts == {"unusable_picture": 1}
    assert len(finished(raw, small)[0]) == 1
