"""Drawings show the targets in their places and the expression below."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from refcli.contracts.prediction import Answer, Target
from refcli.drawing.colours import OVERLAY_COLOURS
from refcli.drawing.lettering import font_of, wrap
from refcli.drawing.overlays import SMALLEST_DRAWING, blank_image, draw_answer
from refcli.geometry.masks import encode_mask


def answer(*targets: Target, expression: str = "the cup", width: int = 800, height: int = 600, error=None) -> Answer:
    return Answer("1", "a.jpg", expression, width, height, targets, not targets and not error, None, "w", error)


def target(box, width=800, height=600, *, mask=True) -> Target:
    bitmap = np.zeros((height, width), dtype=bool)
    bitmap[box[1] : box[3], box[0] : box[2]] = True
    return Target(tuple(map(float, box)), 0.9, encode_mask(bitmap) if mask else None)


def changed(drawing: Image.Image, pixels: np.ndarray) -> np.ndarray:
    return (np.asarray(drawing)[: pixels.shape[0]] != pixels).any(-1)


def test_a_box_is_drawn_on_its_edges_and_leaves_the_rest_of_the_image_as_it_is():
    pixels = np.full((600, 800, 3), 128, np.uint8)
    drawing = draw_answer(pixels, answer(target((300, 200, 500, 400), mask=False)))
    touched = changed(drawing, pixels)
    assert touched[300, 300]
    assert touched[300, 499:502].any()
    assert touched[200, 400]
    assert not touched[210:390, 310:490].any()
    assert not touched[:, :280].any()


def test_a_mask_is_tinted_and_the_rest_is_dimmed():
    pixels = np.full((600, 800, 3), 128, np.uint8)
    drawn = np.asarray(draw_answer(pixels, answer(target((300, 200, 500, 400)))))
    assert drawn[300, 400, 0] > 150
    assert (drawn[50, 50] < 100).all()


def test_several_targets_have_the_colours_of_the_palette_in_order():
    pixels = np.full((600, 800, 3), 128, np.uint8)
    boxes = [(50, 100, 150, 200), (250, 100, 350, 200), (450, 100, 550, 200)]
    drawn = np.asarray(draw_answer(pixels, answer(*(target(box, mask=False) for box in boxes))))
    for box, colour in zip(boxes, OVERLAY_COLOURS, strict=False):
        np.testing.assert_allclose(drawn[150, box[0]], colour, atol=3)


def test_without_a_target_the_image_stays_untouched_above_the_caption():
    pixels = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    drawing = draw_answer(pixels, answer())
    assert not changed(drawing, pixels).any()
    assert drawing.height > 600


def test_small_images_are_enlarged_and_large_ones_keep_their_size():
    small = draw_answer(np.zeros((100, 160, 3), np.uint8), answer(width=160, height=100))
    assert small.width == SMALLEST_DRAWING
    large = draw_answer(np.zeros((900, 2000, 3), np.uint8), answer(width=2000, height=900))
    assert large.width == 2000


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (2000, 3)])
@pytest.mark.parametrize("expression", ["", "x", "x" * 10_000, "many words " * 500, "左の猫 🐈", "a\nb\tc"])
def test_any_shape_and_any_text_can_be_drawn(size, expression):
    width, height = size
    box = target((0, 0, width, height), width, height)
    drawing = draw_answer(
        np.zeros((height, width, 3), np.uint8), answer(box, expression=expression, width=width, height=height)
    )
    assert drawing.height < 1500


def test_degenerate_boxes_and_empty_masks_are_drawn():
    empty = Target((800.0, 600.0, 800.0, 600.0), 0.5, encode_mask(np.zeros((600, 800), dtype=bool)))
    assert draw_answer(np.zeros((600, 800, 3), np.uint8), answer(empty)).width == 800


def test_an_error_is_shown_on_a_grey_field():
    drawing = draw_answer(blank_image(), answer(error="the image is damaged"))
    plain = draw_answer(blank_image(), answer())
    assert drawing.tobytes() != plain.tobytes()


def test_wrapped_lines_fit_and_together_contain_the_text():
    font = font_of(20)
    text = "the second small striped circle from the left that is not behind the large green rectangle"
    lines = wrap(text, font, 250, max_lines=10)
    assert all(font.getlength(line) <= 250 for line in lines)
    assert " ".join(lines) == text
    short = wrap(text, font, 250, max_lines=2)
    assert len(short) == 2
    assert short[1].endswith("...")
    assert font.getlength(short[1]) <= 250
