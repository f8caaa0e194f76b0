"""The colours of labelled objects in their pixels: the certain one, and those that a reader might see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from refcli.data.language.english import head, is_person
from refcli.data.templates.names import is_animal
from refcli.geometry.boxes import BoxXYXY

CERTAIN_SHARE = 0.55
"""Minimum share of an object's pixels that are clearly of its colour."""
OTHER_SHARE = 0.15
"""With this share of pixels clearly of a second colour, no colour is certain."""
POSSIBLE_SHARE = 0.08
"""With this share of pixels roughly of a colour, a reader might see it."""
SHADED_SHARE = 0.75
"""As `CERTAIN_SHARE`, for white and black, which may be light and shadow, and for the central part of a box without a
mask."""
SURROUNDING_SHARE = 0.3
"""With this share around a box without a mask, a colour may be the background's."""
COMMON_SHARE = 0.6
"""With this share of the whole image, a colour may be that of the light."""
MIN_PIXELS = 400
MAX_SAMPLE = 10_000
"""Maximum number of pixels to measure, spread evenly over the object."""


class _Tone(NamedTuple):
    """A range of OpenCV's HSV: hue 0..179 (a range may pass 179), saturation and value 0..255, all inclusive."""

    hue: tuple[int, int] = (0, 179)
    saturation: tuple[int, int] = (0, 255)
    value: tuple[int, int] = (0, 255)

    def covers(self, hsv: np.ndarray) -> Bool[np.ndarray, ...]:
        """The pixels within the range."""
        hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
        first, last = self.hue
        in_hue = (hue >= first) & (hue <= last) if first <= last else (hue >= first) | (hue <= last)
        in_saturation = (saturation >= self.saturation[0]) & (saturation <= self.saturation[1])
        covered: np.ndarray = in_hue & in_saturation & (value >= self.value[0]) & (value <= self.value[1])
        return covered


TONES: Mapping[str, tuple[_Tone, _Tone]] = {
    "red": (_Tone((174, 6), (140, 255), (90, 255)), _Tone((160, 16), (70, 255), (50, 255))),
    "yellow": (_Tone((23, 32), (130, 255), (140, 255)), _Tone((16, 38), (60, 255), (80, 255))),
    "green": (_Tone((45, 80), (90, 255), (60, 255)), _Tone((34, 95), (45, 255), (40, 255))),
    "blue": (_Tone((102, 125), (120, 255), (70, 255)), _Tone((85, 140), (45, 255), (40, 255))),
    "white": (_Tone(saturation=(0, 32), value=(200, 255)), _Tone(saturation=(0, 70), value=(135, 255))),
    "black": (_Tone(value=(0, 45)), _Tone(value=(0, 95))),
}
"""Colour -> the tones that are clearly it, and those that are roughly it."""
_NO_COLOUR = frozenset(
    {"tv", "television", "monitor", "screen", "display", "laptop", "computer", "tablet", "phone", "mirror", "window",
     "light", "lamp", "painting", "photo", "poster", "image", "hand", "face", "arm", "leg", "head", "hair", "finger",
     "body", "glass", "bottle", "jar", "vase", "water", "sky", "shadow", "reflection", "fire", "smoke"}
)  # fmt: skip
"""Things whose pixels show another thing, a state or a person."""


class Colours(NamedTuple):
    """The colours of one object."""

    certain: str | None
    possible: frozenset[str] | None
    """None: any."""


UNKNOWN = Colours(None, None)


def has_colour(noun: str) -> bool:
    """Whether colour words are used with a noun.

    They are not for people and animals, for screens, lights and transparent things, and where the noun contains a
    colour word ("orange", "blackboard").
    """
    if is_person(noun) or is_animal(noun) or head(noun) in _NO_COLOUR:
        return False
    return not any(colour in noun for colour in (*TONES, "orange", "pink", "brown", "purple", "gray", "grey"))


class ColourMeter:
    """Measures the objects of one image."""

    def __init__(self, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        self._hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        rough = _shares(self._hsv.reshape(-1, 3)).rough
        self._common = frozenset(name for name in TONES if rough[name] > COMMON_SHARE)

    def measure(
        self, box_xyxy: BoxXYXY, mask: Bool[np.ndarray, "height width"] | None, others: Sequence[BoxXYXY]
    ) -> Colours:
        """The colours of an object.

        Args:
            box_xyxy: its box, inside the image.
            mask: its pixels; None: the central part of the box is taken.
            others: the boxes of other objects; one that reaches into the central part makes all colours possible.
        """
        left, top, right, bottom = box_xyxy
        inside = self._cut(box_xyxy)
        if mask is not None:
            pixels = inside[mask[_pixels(top, bottom), _pixels(left, right)]]
            return self._colours(pixels, pixels, CERTAIN_SHARE, self._common)
        x, y = (right - left) / 4, (bottom - top) / 4
        centre = (left + x, top + y, right - x, bottom - y)
        if any(_meet(centre, other) for other in others):
            return UNKNOWN
        around = self._cut((left - x / 2, top - y / 2, right + x / 2, bottom + y / 2)).reshape(-1, 3)
        inside = inside.reshape(-1, 3)
        wide, narrow = _shares(around).rough, _shares(inside).rough
        least = SURROUNDING_SHARE * (len(around) - len(inside))
        behind = {name for name in TONES if wide[name] * len(around) - narrow[name] * len(inside) > least}
        return self._colours(self._cut(centre).reshape(-1, 3), inside, SHADED_SHARE, self._common | behind)

    def _colours(self, pixels: np.ndarray, whole: np.ndarray, least: float, doubtful: frozenset[str]) -> Colours:
        """The colours of the pixels of an object, and those of all pixels that may be its."""
        if len(pixels) < MIN_PIXELS:
            return UNKNOWN
        clear, rough = _shares(pixels).clear, _shares(whole).rough
        possible = frozenset(name for name in TONES if rough[name] >= POSSIBLE_SHARE)
        first, second = sorted(TONES, key=lambda name: -clear[name])[:2]
        is_certain = (
            clear[first] >= (SHADED_SHARE if first in ("white", "black") else least)
            and clear[second] < OTHER_SHARE
            and first in possible - doubtful
        )
        return Colours(first if is_certain else None, possible)

    def _cut(self, box_xyxy: BoxXYXY) -> np.ndarray:
        left, top, right, bottom = box_xyxy
        return np.asarray(self._hsv[_pixels(top, bottom), _pixels(left, right)])


class _Shares(NamedTuple):
    """Colour -> the share of the pixels that are clearly, or roughly, of it."""

    clear: dict[str, float]
    rough: dict[str, float]


def _shares(hsv: np.ndarray) -> _Shares:
    sample = hsv[:: len(hsv) // MAX_SAMPLE + 1]
    clear, rough = (
        {name: float(tones[which].covers(sample).mean()) if len(sample) else 0.0 for name, tones in TONES.items()}
        for which in (0, 1)
    )
    return _Shares(clear, rough)


def _pixels(low: float, high: float) -> slice:
    """The pixels between two edges."""
    return slice(round(max(low, 0)), round(max(high, 0)))


def _meet(one: BoxXYXY, other: BoxXYXY) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
