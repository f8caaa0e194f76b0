"""Cases are drawn with the truth in one colour and the answer in another, within a limit on the file size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from refcli.drawing.cases import SMALLEST_SIDE, case_jpeg, draw_case
from refcli.drawing.colours import ANSWER_COLOUR, TRUTH_COLOUR
from refcli.errors import ImageError
from refcli.geometry.masks import encode_mask

SIZE = (80, 60)
GREY = np.full((60, 80, 3), 120, dtype=np.uint8)
LEFT, RIGHT = (5.0, 10.0, 35.0, 50.0), (45.0, 10.0, 75.0, 50.0)


def bitmap(box: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = map(int, box)
    mask = np.zeros((60, 80), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def has_colour(drawing: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((drawing == colour).all(axis=-1).any())


def test_truth_and_answer_have_their_own_colours():
    drawing = draw_case(GREY, SIZE, [(LEFT, None)], [(RIGHT, None)], long_side=320)
    assert drawing.shape == (240, 320, 3)
    left, right = drawing[:, :160], drawing[:, 160:]
    assert (has_colour(left, TRUTH_COLOUR), has_colour(left, ANSWER_COLOUR)) == (True, False)
    assert (has_colour(right, TRUTH_COLOUR), has_colour(right, ANSWER_COLOUR)) == (False, True)


def test_masks_are_tinted_and_the_rest_stays():
    drawing = draw_case(GREY, SIZE, [(LEFT, encode_mask(bitmap(LEFT)))], [], long_side=320)
    inside, outside = drawing[120, 80], drawing[120, 260]
    assert (inside != 120).any()
    assert (outside == 120).all()


def test_a_box_that_is_not_finite_is_not_drawn():
    nowhere = (float("nan"), 0.0, 10.0, 10.0)
    assert (draw_case(GREY, SIZE, [], [(nowhere, None)], long_side=320) == 120).all()


def test_a_drawing_shrinks_to_the_limit_but_not_below_the_smallest_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sides = {}
    for limit in (1_000_000, 20_000, 1):
        jpeg = case_jpeg(tmp_path / "noise.png", SIZE, [(LEFT, None)], [], max_bytes=limit)
        sides[limit] = Image.open(io.BytesIO(jpeg)).width
        assert len(jpeg) <= limit or sides[limit] == SMALLEST_SIDE
    assert sides[1_000_000] > sides[20_000] > sides[1] == SMALLEST_SIDE


def test_an_unknown_size_is_that_of_the_file(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    known, unknown = (
        case_jpeg(tmp_path / "grey.png", size, [(LEFT, None)], [], max_bytes=10**6) for size in (SIZE, (0, 0))
    )
    assert known == unknown


def test_an_unreadable_image_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(ImageError):
        case_jpeg(tmp_path / "broken.png", SIZE, [], [], max_bytes=10**6)
