"""An answer shows itself in a notebook, and gives its masks, its drawing and supervision's detections."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from refcli.contracts.prediction import Answer, Target
from refcli.drawing.overlays import draw_answer
from refcli.errors import DataError, UsageError
from refcli.geometry.masks import encode_mask

HEIGHT, WIDTH = 40, 60
BITMAPS = np.zeros((2, HEIGHT, WIDTH), dtype=np.bool_)
BITMAPS[0, 5:20, 10:30] = BITMAPS[1, 30:, 50:] = True
BOXES = [(10.0, 5.0, 30.0, 20.0), (50.0, 30.0, 60.0, 40.0)]
TARGETS = tuple(Target(box, 0.75, encode_mask(bitmap)) for box, bitmap in zip(BOXES, BITMAPS, strict=True))
ABOUT_ARRAY = Answer("0", "<ndarray>", 'the <b>cup</b> & "fork"', WIDTH, HEIGHT, TARGETS, False, 0.1, "w")
NO_TARGET = replace(ABOUT_ARRAY, targets=(), no_target=True)
BOXES_ONLY = replace(ABOUT_ARRAY, targets=tuple(replace(target, mask=None) for target in TARGETS))
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def answer(tmp_path):
    """The answer about a file."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return replace(ABOUT_ARRAY, image=str(tmp_path / "a.png"))


def test_masks_are_arrays_in_the_order_of_the_targets():
    assert np.array_equal(ABOUT_ARRAY.masks(), BITMAPS)
    assert (NO_TARGET.masks().shape, NO_TARGET.masks().dtype) == ((0, HEIGHT, WIDTH), np.bool_)
    with pytest.raises(UsageError, match="no mask"):
        BOXES_ONLY.masks()


def test_the_drawing_is_that_of_predict_from_the_file_or_a_given_image(answer):
    expected = np.asarray(draw_answer(PIXELS, answer))

    assert np.array_equal(np.asarray(answer.draw()), expected)
    for image in (PIXELS, Image.fromarray(PIXELS), answer.image):
        assert np.array_equal(np.asarray(ABOUT_ARRAY.draw(image)), expected)


def test_a_drawing_needs_an_image_of_the_right_size():
    with pytest.raises(UsageError, match="no image file"):
        ABOUT_ARRAY.draw()
    with pytest.raises(DataError, match="30 x 40"):
        ABOUT_ARRAY.draw(PIXELS[:, :30])


def test_a_notebook_shows_the_drawing_of_a_file(answer):
    with Image.open(io.BytesIO(answer._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(answer.draw()))
    assert answer._repr_html_() is None


def test_a_notebook_shows_a_table_and_a_sketch_without_a_file():
    assert ABOUT_ARRAY._repr_png_() is None
    page = ElementTree.fromstring(ABOUT_ARRAY._repr_html_())
    rows = [[cell.text for cell in row.iter("td")] for row in page.iter("tr")]
    boxes = [rectangle for rectangle in page.iter("rect") if rectangle.get("x")]

    assert [name.text for name in page.iter("bdi")] == [ABOUT_ARRAY.expression, "<ndarray>"]
    assert rows[1:] == [["0.750", "10.0", "5.0", "30.0", "20.0"], ["0.750", "50.0", "30.0", "60.0", "40.0"]]
    assert [float(boxes[1].get(key)) for key in ("x", "y", "width", "height")] == [50, 30, 10, 10]
    assert "no target" in NO_TARGET._repr_html_()
    assert "is &lt;i&gt;no image" in replace(NO_TARGET, error="it is <i>no image")._repr_html_()


def test_supervision_gets_boxes_scores_masks_and_the_expression(monkeypatch):
    @dataclass
    class Detections:
        xyxy: np.ndarray
        mask: np.ndarray | None
        confidence: np.ndarray
        class_id: np.ndarray
        data: dict

        @staticmethod
        def empty():
            return "empty"

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Detections))
    found = ABOUT_ARRAY.to_supervision()

    assert found.xyxy.tolist() == [list(box) for box in BOXES]
    assert np.array_equal(found.mask, BITMAPS)
    assert (found.confidence.tolist(), found.class_id.tolist()) == ([0.75, 0.75], [0, 0])
    assert found.data["class_name"].tolist() == [ABOUT_ARRAY.expression] * 2
    assert BOXES_ONLY.to_supervision().mask is None
    assert NO_TARGET.to_supervision() == "empty"


def test_without_supervision_the_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError) as caught:
        ABOUT_ARRAY.to_supervision()
    assert caught.value.hint == "pip install supervision"
