"""Text answers of vision-language models are read in the one declared format and space, and failures are failures."""

from __future__ import annotations

import pytest

from refcli.text.vlm_text import TEXT_FORMATS, AnswerTextError, ImageSizes, parse_answer, smart_resize

SIZES = ImageSizes(1000, 500, 500, 250)


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_the_example_of_every_format_gives_one_box_inside_the_image(name):
    (x1, y1, x2, y2) = parse_answer(TEXT_FORMATS[name].example, name, SIZES)[0]

    assert x1 < x2 and y1 < y2
    assert x1 >= 0 and x2 <= 1000


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen3-vl", '[{"bbox_2d": [100, 200, 300, 400]}]', (100, 100, 300, 200)),
        ("qwen2.5-vl", '[{"bbox_2d": [100, 200, 300, 240]}]', (200, 400, 600, 480)),
        ("qwen2-vl", "<|box_start|>(100,200),(300,400)<|box_end|>", (100, 100, 300, 200)),
        ("internvl", "<ref>x</ref><box>[[100, 200, 300, 400]]</box>", (100, 100, 300, 200)),
        ("deepseek-vl2", "<|det|>[[0, 0, 999, 999]]<|/det|>", (0, 0, 1000, 500)),
        ("cogvlm", "[[010,020,300,400]]", (10, 10, 300, 200)),
        ("shikra", "[0.1, 0.25, 0.2, 0.75]", (100, 0, 200, 500)),
        ("kosmos-2", "(a cup, (0, 5), [(0.1, 0.2, 0.3, 0.4)])", (100, 100, 300, 200)),
        ("kosmos-2", "<patch_index_0000><patch_index_1023>", (15.625, 7.8125, 984.375, 492.1875)),
        ("kosmos-2", "<patch_index_0033><patch_index_0033>", (31.25, 15.625, 62.5, 31.25)),
        ("paligemma", "<loc0512><loc0256><loc1024><loc0768> cat", (250, 250, 750, 500)),
        ("florence-2", "cat<loc_0><loc_0><loc_999><loc_999>", (0.5, 0.25, 999.5, 499.75)),
        ("gemini", '[{"box_2d": [200, 100, 400, 300]}]', (100, 100, 300, 200)),
        ("moondream", '{"objects":[{"x_min":0.1,"y_min":0.2,"x_max":0.3,"y_max":0.4}]}', (100, 100, 300, 200)),
        ("rex-omni", "<|box_start|><0><0><999><999><|box_end|>", (0, 0, 1000, 500)),
        ("rex-omni", "<|box_start|><999><0><|box_end|>", (1000, 0, 1000, 0)),
        ("xiaomi-lens", "<bbox>[100, 200, 300, 400]</bbox><mask><|mask|></mask>", (100, 100, 300, 200)),
        ("vlm-r1", "<think>[1, 2, 3, 4]</think><answer>[100, 200, 300, 240]</answer>", (200, 400, 600, 480)),
    ],
)
def test_a_box_comes_out_in_pixels_of_the_image(name, text, expected):
    (box,) = parse_answer(text, name, SIZES)

    assert box == pytest.approx(expected)


def test_several_boxes_are_several_targets_in_the_order_of_the_text():
    text = '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "label": "b"}]\n```'

    assert parse_answer(text, "qwen3-vl", ImageSizes(1000, 1000)) == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert len(parse_answer('{"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}', "qwen3-vl", SIZES)) == 2
    assert len(parse_answer("<|box_start|><0><35><980><987>, <646><0><999><940><|box_end|>", "rex-omni", SIZES)) == 2
    text = "<loc0001><loc0002><loc0003><loc0004> a ; <loc0005><loc0006><loc0007><loc0008> b"
    assert len(parse_answer(text, "paligemma", SIZES)) == 2


def test_boxes_of_cogvlm_are_divided_by_semicolons():
    assert parse_answer("[[001,002,003,004;005,006,007,008]]", "cogvlm", ImageSizes(1000, 1000)) == (
        (1, 2, 3, 4),
        (5, 6, 7, 8),
    )


def test_rex_omni_refuses_within_its_tags():
    assert (
        parse_answer("<|object_ref_start|>cat<|object_ref_end|><|box_start|>None<|box_end|>", "rex-omni", SIZES) == ()
    )


def test_of_an_answer_that_was_cut_off_the_complete_boxes_count():
    text = '```json\n[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6'

    assert parse_answer(text, "qwen3-vl", ImageSizes(1000, 1000)) == ((1, 2, 3, 4),)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[[]]",
        "```json\n[]\n```",
        '{"bbox_2d": null}',
        '[{"bbox_2d": [], "label": "cup"}]',
        "There is no such cup in the image.",
        "The image does not contain a red cup.",
        "None",
        "<think>the box [1, 2, 3, 4]?</think>I could not find it.",
        "I can’t see a cup.",
        'The "red cup" is not visible in the image.',
        "The described object does not exist.",
    ],
)
def test_a_refusal_is_no_target(text):
    assert parse_answer(text, "qwen3-vl", SIZES) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the cup on the left",
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": [1, 2, 3], "label": null}',
        "<think>it may be [1, 2, 3, 4], or there is no cup",
        '[{"bbox_2d": [10, 20',
        "[1, 2, 3]",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        "The man whose legs are not visible is on the left.",
        "the box that does not contain apples",
        "<ref>a cup that is not visible</ref><bo",
        '[{"label": "there is no handle", "bbox_2d": [10, 2',
        "The lid is not visible, the cup is at (10, 20",
        "Second to none, the tall one.",
    ],
)
def test_text_without_a_box_is_a_failure_and_not_a_refusal(text):
    with pytest.raises(AnswerTextError):
        parse_answer(text, "qwen3-vl", SIZES)


def test_the_declared_space_is_the_only_one_that_is_tried():
    text = '[{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}]'

    (box,) = parse_answer(text, "qwen3-vl", ImageSizes(1000, 1000))
    assert box == pytest.approx((0.1, 0.2, 0.3, 0.4)), "fractions in a format of 0..1000 stay as small as they are"
    (box,) = parse_answer(text, "qwen3-vl", ImageSizes(1000, 1000), coordinates="unit")
    assert box == pytest.approx((100, 200, 300, 400))


def test_pixels_of_the_input_need_its_size():
    with pytest.raises(AnswerTextError, match="size of the model's input"):
        parse_answer("[1, 2, 3, 4]", "qwen2.5-vl", ImageSizes(10, 10))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (644, 476)), ((10, 10), (56, 56)), ((28, 28), (56, 56)), ((8000, 6000), (4116, 3080))],
)
def test_the_input_size_of_qwen_is_a_multiple_of_28_within_bounds(size, expected):
    assert smart_resize(*size) == expected
