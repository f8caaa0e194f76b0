"""Boxes in the text of training lines are read in the declared notation and space, and in no other."""

from __future__ import annotations

import json

import pytest
from corpora.json_sets import conversation

from refcli.config.load import validate
from refcli.data.preparation.dataset_images import Place
from refcli.data.preparation.finish import FinishSettings, finish
from refcli.data.sources.llava import SOURCE, LlavaSettings
from refcli.data.sources.record import Problems
from refcli.errors import ConfigError, DataError

WHERE = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
WHAT = "Please provide a short description for this region: {box}"


def read(path, *rows, problems=None, **settings):
    path.write_text(json.dumps(rows))
    problems = Problems() if problems is None else problems
    records = SOURCE.read({"train": path}, LlavaSettings(**settings), dataset="mine", problems=problems)
    return list(records)


def examples(records, problems=None):
    placed = [(record, Place("a.jpg", None)) for record in records]
    return list(finish(placed, FinishSettings("mine"), Problems() if problems is None else problems))


def test_a_prompt_asks_for_the_boxes_of_an_expression_or_for_the_expression_of_a_box(tmp_path):
    problems = Problems()
    row = conversation(
        "a.jpg",
        "<image>\n" + WHERE.format(expression="the left cup"),
        "[0.1, 0.25, 0.3, 0.75]",
        WHAT.format(box="[0.5, 0.25, 0.9, 0.75]"),
        "the right cup",
        WHERE.format(expression="<ref>the fork</ref>"),
        "There is no such object.",
        "How many cups are there?",
        "Two.",
    )

    records = read(tmp_path / "a.json", row, problems=problems, coordinates="unit", prompts=(WHERE, WHAT))

    found = {one.expression: [region.box_xyxy for region in one.regions] for one in examples(records)}
    assert found == {"the left cup": [(10, 20, 30, 60)], "the right cup": [(50, 20, 90, 60)], "the fork": []}
    assert problems.counts == {"turn_without_prompt": 1}


@pytest.mark.parametrize(
    ("space", "numbers", "expected"),
    [
        ("pixels", (10, 20, 30, 60), (10, 20, 30, 60)),
        ("thousand", (100, 250, 300, 750), (10, 20, 30, 60)),
        ("bins-999", (99.9, 249.75, 299.7, 749.25), (10, 20, 30, 60)),
        ("unit-padded", (0.1, 0.3, 0.3, 0.7), (10, 20, 30, 60)),
    ],
)
def test_the_numbers_of_a_box_are_those_of_the_declared_space(tmp_path, space, numbers, expected):
    row = conversation("a.jpg", "?", f"<ref>the cup</ref><box>[{', '.join(map(str, numbers))}]</box>")

    (example,) = examples(read(tmp_path / "a.json", row, coordinates=space))

    assert example.regions[0].box_xyxy == pytest.approx(expected)


@pytest.mark.parametrize(
    ("space", "numbers", "message"),
    [
        ("thousand", "0.1, 0.2, 0.3, 0.4", "fractions, but coordinates=thousand"),
        ("pixels", "0.1, 0.2, 0.3, 0.4", "fractions, but coordinates=pixels"),
        ("unit", "0, 0, 500, 700", "500 is not within 0 to 1"),
        ("thousand", "0, 0, 500, 1023", "1023 is not within 0 to 1000"),
    ],
)
def test_boxes_that_cannot_be_of_the_declared_space_are_refused(tmp_path, space, numbers, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json", conversation("a.jpg", "?", f"<p>the cup</p> [{numbers}]"), coordinates=space)


def test_fractions_need_the_size_of_the_image(tmp_path):
    problems = Problems()
    row = conversation("a.jpg", "?", "<p>the cup</p> [0.1, 0.2, 0.3, 0.4]", width=None, height=None)

    assert not examples(read(tmp_path / "a.json", row, coordinates="unit"), problems)
    assert problems.counts == {"box_in_image_of_unknown_size": 1}


def test_mentions_of_a_phrase_share_their_boxes_and_other_notations_are_not_tried(tmp_path):
    text = "<ref>a cup</ref><box>(10,20),(30,60)</box> <ref>a cup</ref><box>(50,20),(90,60)</box>"
    row = conversation("a.jpg", "?", text)

    (record,) = read(tmp_path / "a.json", row, coordinates="pixels", notation="qwen-vl")

    assert [region.box_xyxy for region in record.regions] == [(10, 20, 30, 60), (50, 20, 90, 60)]
    with pytest.raises(DataError, match="no line has an expression with a box"):
        read(tmp_path / "a.json", row, coordinates="pixels", notation="internvl")


def test_answers_without_a_phrase_are_reported(tmp_path):
    problems = Problems()
    rows = [conversation("a.jpg", "?", "Two cups."), conversation("a.jpg", "?", "<p>the cup</p> [1, 2, 3, 4]")]

    records = read(tmp_path / "a.json", *rows, problems=problems, coordinates="pixels")

    assert [record.expressions[0].text for record in records] == ["the cup"]
    assert problems.counts == {"line_without_phrase": 1}


def test_lines_without_an_image_are_left_out_and_lines_of_several_are_refused(tmp_path):
    problems = Problems()
    answer = "<p>the cup</p> [1, 2, 3, 4]"
    rows = [conversation(image, "?", answer) for image in (["a.jpg"], [], None, ["a.jpg", "b.jpg"])]

    records = read(tmp_path / "a.json", *rows, problems=problems, coordinates="pixels")

    assert [record.image.key for record in records] == ["mine:a.jpg"]
    assert problems.counts == {"line_without_image": 2, "broken_row": 1}
    assert "the line has 2 images" in problems.places["broken_row"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "coordinates is one of: pixels, unit,"),
        ({"coordinates": "pixels", "notation": "x"}, "'x' is none of"),
        ({"coordinates": "unit", "prompts": ["Where?"]}, "needs either {expression} or {box}"),
    ],
)
def test_the_space_is_declared_and_the_other_settings_are_checked(settings, message):
    with pytest.raises(ConfigError) as caught:
        validate(LlavaSettings, settings, where="settings")

    assert message in str(caught.value)
