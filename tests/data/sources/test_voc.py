"""Pascal VOC: pixels counted from 1, lists of splits, difficult objects, and what is refused."""

from __future__ import annotations

import pytest
from corpora.json_sets import LEFT, RIGHT
from corpora.label_tools import voc_object, write_voc

from refcli.data.preparation.plan import plan_file
from refcli.data.sources.detect import detect_format
from refcli.data.sources.record import Problems
from refcli.data.sources.voc import SOURCE


def read(folder, problems=None, **settings):
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"train": folder}, SOURCE.settings(**settings), dataset="mine", problems=problems))


def boxes(records):
    return [one.box_xyxy for record in records for one in record.regions]


def test_the_box_of_a_whole_image_has_the_pixels_1_to_its_size(tmp_path):
    folder = write_voc(tmp_path, {"a": voc_object((0, 0, 100, 80), "cup")})

    assert "<xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>80</ymax>" in (folder / "a.xml").read_text()
    assert boxes(read(folder)) == [(0.0, 0.0, 100.0, 80.0)]
    assert boxes(read(folder, boxes="edges")) == [(1.0, 1.0, 100.0, 80.0)]


def test_a_box_at_pixel_0_shows_that_its_file_does_not_count_from_1(tmp_path):
    folder = write_voc(tmp_path, {"a": voc_object((-1, 9, 30, 40), "cup")})
    problems = Problems()

    assert boxes(read(folder, problems)) == [(0.0, 9.0, 30.0, 40.0)]
    assert problems.counts == {"box_counted_from_0": 1}
    assert boxes(read(folder, boxes="edges")) == [(0.0, 10.0, 30.0, 40.0)]


def test_the_lists_of_image_sets_name_the_splits(tmp_path):
    names = ("a", "b", "c", "unlisted")
    write_voc(tmp_path, {name: voc_object(LEFT, "cup") for name in names})
    main = tmp_path / "ImageSets/Main"
    main.mkdir(parents=True)
    for split, listed in {"train": "a\n", "val": "b\nmissing\n", "trainval": "a\nb\n", "test": "c\n"}.items():
        (main / f"{split}.txt").write_text(listed)
    (main / "cup_train.txt").write_text("a  1\n")
    problems = Problems()

    plan = plan_file(tmp_path, name="mine")
    found = list(plan.source.read(plan.files, plan.settings, dataset="mine", problems=problems))

    assert [(record.split, record.image.key) for record in found] == [
        ("train", "mine:a.jpg"),
        ("val", "mine:b.jpg"),
        ("test", "mine:c.jpg"),
    ]
    assert problems.counts == {"image_without_annotation": 1, "image_of_no_split": 1}
    assert plan.notes == ()
    assert detect_format(tmp_path) == "voc"


def test_difficult_objects_are_targets_and_make_their_class_uncountable(tmp_path):
    difficult = voc_object(RIGHT, "cup", "<difficult>1</difficult><truncated>1</truncated>")
    folder = write_voc(tmp_path, {"a": voc_object(LEFT, "cup", "<difficult>0</difficult>") + difficult, "b": ""})

    first, second = read(folder, expressions="template")

    assert [(one.box_xyxy, one.is_crowd) for one in first.regions] == [(LEFT, False), (RIGHT, True)]
    assert (second.regions, second.needs_expressions) == ((), True)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (voc_object(LEFT, "cup").replace("bndbox", "robndbox"), "broken_object"),
        (voc_object(LEFT, "cup").replace("<xmin>11", "<xmin>x"), "broken_object"),
        (voc_object(LEFT, "cup", "<deleted>1</deleted>"), "ignored_record"),
    ],
)
def test_a_broken_object_leaves_its_class_out_of_the_image(tmp_path, broken, kind):
    problems = Problems()
    folder = write_voc(tmp_path, {"a": voc_object(RIGHT, "cup") + broken + voc_object(LEFT, "plate")})

    (record,) = read(folder, problems)

    assert record.expressions[0].text == "plate"
    assert (problems.counts[kind], problems.counts["target_of_broken_object"]) == (1, 1)
