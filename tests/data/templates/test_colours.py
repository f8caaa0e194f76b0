"""The colour of an object is certain only where most of its pixels have it and nothing else explains them."""

import numpy as np
import pytest

from refcli.data.templates.colours import UNKNOWN, ColourMeter, has_colour

RGB = {"red": (210, 20, 30), "yellow": (240, 220, 30), "green": (30, 150, 40), "blue": (30, 60, 200)}
RGB |= {"white": (245, 245, 245), "black": (20, 20, 20)}
BOX = (20.0, 20.0, 80.0, 70.0)


def painted(colour, *, share=1.0, background=(128, 120, 110)):
    """A gray image with a box whose upper part has a colour, and the mask of the box."""
    pixels = np.full((100, 120, 3), background, dtype=np.uint8)
    pixels[20:70, 20:80] = (128, 120, 110)
    pixels[20 : 20 + round(50 * share), 20:80] = RGB[colour]
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[20:70, 20:80] = True
    return pixels, mask


@pytest.mark.parametrize("colour", RGB)
@pytest.mark.parametrize("has_mask", [True, False])
def test_an_object_of_one_colour_has_it_with_and_without_a_mask(colour, has_mask):
    pixels, mask = painted(colour)
    assert ColourMeter(pixels).measure(BOX, mask if has_mask else None, ()) == (colour, {colour})


@pytest.mark.parametrize(("share", "certain", "possible"), [(0.3, None, {"red"}), (0.04, None, set())])
def test_a_colour_of_a_part_is_possible_and_one_of_a_few_pixels_is_not(share, certain, possible):
    pixels, mask = painted("red", share=share)
    assert ColourMeter(pixels).measure(BOX, mask, ()) == (certain, possible)


def test_a_colour_is_not_certain_where_the_background_or_the_light_has_it():
    pixels, mask = painted("blue", background=RGB["blue"])
    assert ColourMeter(pixels).measure(BOX, mask, ()).certain is None
    assert ColourMeter(pixels).measure(BOX, None, ()).certain is None


def test_a_covered_centre_or_a_few_pixels_show_no_colour():
    pixels, mask = painted("red")
    meter = ColourMeter(pixels)
    assert meter.measure(BOX, None, [(50.0, 40.0, 110.0, 90.0)]) == UNKNOWN
    assert meter.measure((20.0, 20.0, 30.0, 30.0), np.logical_and(mask, np.arange(120) < 27), ()) == UNKNOWN


def test_people_animals_screens_and_nouns_with_a_colour_get_no_colour_word():
    assert not any(map(has_colour, ("person", "woman", "zebra", "tv", "traffic light", "orange", "blackboard")))
    assert all(map(has_colour, ("car", "umbrella", "chair")))
