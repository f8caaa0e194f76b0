"""The colours and fills of the synthetic objects."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 28, 32),
    "orange": (250, 138, 18),
    "yellow": (248, 222, 30),
    "green": (38, 156, 52),
    "cyan": (40, 208, 214),
    "blue": (32, 70, 214),
    "purple": (126, 34, 168),
    "pink": (250, 132, 190),
    "brown": (118, 68, 28),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
    "gray": (116, 118, 120),
}
"""Colour word -> RGB."""

PATTERN_TONES: dict[str, tuple[int, int, int]] = {
    "yellow": (120, 92, 6),
    "cyan": (8, 96, 110),
    "pink": (255, 244, 250),
    "orange": (255, 240, 214),
    "black": (158, 158, 160),
    "white": (150, 150, 156),
    "gray": (232, 232, 234),
}
"""Second tone of stripes and dots, for colours that would not contrast with their lighter tone."""

FILLS = ("solid", "striped", "dotted", "outlined")

COLOUR_JITTER = 9
"""Largest difference of an object's colour channel from the palette."""

MIN_CONTRAST = 38.0
"""Least CIELAB distance between an object's colour and every colour of the background."""


def pattern_tone(colour: str) -> tuple[int, int, int]:
    """The RGB of stripes and dots on an object of this colour."""
    if colour in PATTERN_TONES:
        return PATTERN_TONES[colour]
    return _lightened(colour, 0.78)


def outline_core(colour: str) -> tuple[int, int, int]:
    """The RGB inside an outlined object: its colour, made very pale; white gets a dark core."""
    if colour in ("white", "gray"):
        return (60, 60, 64) if colour == "white" else (236, 236, 238)
    return _lightened(colour, 0.84)


def _lightened(colour: str, share: float) -> tuple[int, int, int]:
    """The colour, moved by `share` of the way to white."""
    red, green, blue = (int(channel + share * (255 - channel)) for channel in COLOURS[colour])
    return red, green, blue


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (L 0..100) of RGB 0..255; shape [n, 3] to [n, 3]."""
    scaled = np.ascontiguousarray(rgb, dtype=np.float32).reshape(1, -1, 3) / 255
    return np.asarray(cv2.cvtColor(scaled, cv2.COLOR_RGB2LAB)[0])


@cache
def _palette_lab() -> np.ndarray:
    return to_lab(np.array(list(COLOURS.values())))


def contrasting(background_rgb: np.ndarray) -> list[str]:
    """The colour words that stand out from every one of the background's colours, shape [n, 3]."""
    distance = np.linalg.norm(_palette_lab()[:, None] - to_lab(background_rgb)[None], axis=-1).min(axis=1)
    return [name for name, far in zip(COLOURS, distance.tolist(), strict=True) if far >= MIN_CONTRAST]
