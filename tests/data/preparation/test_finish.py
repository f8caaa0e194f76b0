"""Raw records become examples; faulty ones are left out or reported, never silently."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from refcli.data.preparation.dataset_images import Place
from refcli.data.preparation.finish import FinishSettings, finish, repair_text
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion
from refcli.geometry.masks import rle_area

SQUARE = json.dumps([[10, 10, 30, 10, 30, 30, 10, 30]]).encode()


def record(*regions, texts=("the cat",), width=100, height=80, where="refs.p: ref 3", key="coco:7"):
    expressions = tuple(RawExpression(f"3/{number}", text) for number, text in enumerate(texts))
    return RawRecord("val", RawImage(key, ("7.jpg",), width, height), expressions, tuple(regions), where)


def finished(raw, path=None, check_images=False):
    problems = Problems()
    examples = list(finish([(raw, Place("val/7.jpg", path))], FinishSettings("pets", check_images), problems))
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


def test_a_record_without_regions_has_no_regions():
    examples, problems = finished(record())
    assert examples[0].regions == ()
    assert not problems.counts


def test_a_box_may_come_from_its_mask():
    examples, _ = finished(record(RawRegion(None, SQUARE)))
    assert examples[0].regions[0].box_xyxy == (10.0, 10.0, 30.0, 30.0)


def test_an_ignored_region_belongs_to_the_example_and_an_unreadable_one_is_reported():
    raw = record(RawRegion((10.0, 10.0, 30.0, 30.0)))
    examples, problems = finished(replace(raw, ignored=SQUARE))
    assert rle_area(examples[0].ignored) == 400
    assert examples[0].regions[0].mask is None
    assert not problems.counts
    examples, problems = finished(replace(raw, ignored=b'"?"'))
    assert examples[0].ignored is None
    assert problems.counts == {"unreadable_mask": 1}


def test_a_box_is_clipped_to_its_image_and_reported_if_it_reached_far():
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
def test_an_impossible_box_drops_its_record_and_is_reported(box, kind):
    examples, problems = finished(record(RawRegion((1.0, 1.0, 5.0, 5.0)), RawRegion(box, source_id="coco:9")))
    assert examples == []
    assert problems.counts == {kind: 1, "dropped_record": 1}
    assert "refs.p: ref 3" in problems.places[kind][0]
    assert "coco:9" in problems.places[kind][0]


def test_a_mask_far_from_its_box_is_reported_and_kept():
    examples, problems = finished(record(RawRegion((50.0, 40.0, 90.0, 70.0), SQUARE)))
    assert examples[0].regions[0].mask is not None
    assert problems.counts == {"mask_disagrees_with_box": 1}


def test_a_broken_or_empty_mask_is_reported_and_its_box_kept():
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


def test_correct_text_is_unchanged():
    for text in ("the caf\u00e9", "Gr\u00f6\u00dfe \u732b", "2nd person's jacket", "\u201cquoted\u201d \u2122"):
        assert repair_text(text) == text
    assert repair_text("cafe\u0301") == "caf\u00e9"


def test_windows_characters_that_were_read_as_latin_1_are_repaired():
    examples, problems = finished(record(texts=("the person\x92s \x93hat\x94\x85", "left\x96most\x81 cup")))
    assert [one.expression for one in examples] == [
        "the person\u2019s \u201chat\u201d\u2026",
        "left\u2013most cup",
    ]
    assert problems.counts == {"repaired_text": 2}


def test_a_lone_surrogate_becomes_a_blank():
    assert repair_text("a\ud83dcat \ude00") == "a cat"
    assert repair_text("a \U0001f600 cat") == "a \U0001f600 cat"


def test_unknown_sizes_come_from_the_image_or_stay_unknown(tmp_path):
    path = tmp_path / "7.jpg"
    Image.new("RGB", (60, 40)).save(path)
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0), SQUARE), width=None, height=None)
    examples, _ = finished(raw, path)
    assert (examples[0].width, examples[0].height) == (60, 40)
    examples, problems = finished(raw)
    assert (examples[0].width, examples[0].height, examples[0].regions[0].mask) == (0, 0, None)
    assert problems.counts == {"mask_in_picture_of_unknown_size": 1}


def test_checked_images_must_decode_and_have_the_annotated_size(tmp_path):
    right, small, broken = (tmp_path / name for name in ("right.png", "small.png", "broken.jpg"))
    Image.new("RGB", (100, 80)).save(right)
    Image.new("RGB", (50, 40)).save(small)
    Image.new("RGB", (100, 80)).save(broken, "JPEG")
    broken.write_bytes(broken.read_bytes()[:300])
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0)))
    assert len(finished(raw, right, check_images=True)[0]) == 1
    for path, kind in ((small, "image_of_another_size"), (broken, "unusable_picture")):
        examples, problems = finished(raw, path, check_images=True)
        assert examples == []
        assert problems.counts == {kind: 1}
    assert len(finished(raw, small)[0]) == 1


def turned(path, orientation, size=(100, 80)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_in_the_stored_orientation_do_not_fit_the_upright_image(tmp_path, orientation):
    path = turned(tmp_path / "7.jpg", orientation)
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0)), texts=("a cat", "pet"))
    examples, problems = finished(raw, path, check_images=True)
    assert examples == []
    assert problems.counts == {"rotated_picture": 2}
    assert f"orientation is {orientation}" in problems.places["rotated_picture"][0]
    assert "jpegtran" in problems.places["rotated_picture"][0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_upright_image_fit_a_rotated_file(tmp_path, orientation):
    path = turned(tmp_path / "7.jpg", orientation, (80, 100) if orientation > 4 else (100, 80))
    raw = record(RawRegion((1.0, 1.0, 5.0, 5.0)))
    examples, problems = finished(raw, path, check_images=True)
    assert bool(examples) == (orientation not in (2, 3, 4))
    assert set(problems.counts) == (set() if examples else {"rotated_picture"})
    unsized = record(RawRegion((1.0, 1.0, 5.0, 5.0)), width=None, height=None)
    examples, problems = finished(unsized, path, check_images=True)
    assert [(one.width, one.height) for one in examples] == [(100, 80)]
    assert not problems.counts


def test_unchecked_images_are_opened_only_if_their_size_must_fit(tmp_path):
    path = turned(tmp_path / "7.jpg", 6)
    region = RawRegion((1.0, 1.0, 5.0, 5.0))
    assert len(finished(record(region), path)[0]) == 1
    assert len(finished(record(region), tmp_path / "nowhere.jpg")[0]) == 1
    examples, problems = finished(record(region, key="pets:7.jpg"), path)
    assert examples == []
    assert problems.counts == {"rotated_picture": 1}
