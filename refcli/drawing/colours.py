"""The colours of all drawings, as RGB."""

from __future__ import annotations

from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]

OVERLAY_COLOURS: tuple[Colour, ...] = (
    (255, 46, 126),
    (0, 168, 255),
    (255, 180, 0),
    (38, 208, 124),
    (155, 92, 255),
    (0, 206, 209),
    (255, 112, 41),
    (168, 214, 0),
)
"""Target n is drawn in colour n (the first follows the last); vivid tones that are rare in photographs."""
TRUTH_COLOUR: Colour = (0, 140, 255)
ANSWER_COLOUR: Colour = (255, 150, 0)
"""Blue and orange, where truth and answer overlap: distinguishable for colour-blind readers (Okabe and Ito)."""
WHITE: Colour = (255, 255, 255)
"""Edges of lines, and text on dark ground."""
INK: Colour = (22, 25, 33)
"""Background of captions, and text on light ground."""
PAPER: Colour = (244, 245, 248)
"""Background of contact sheets."""
GREY: Colour = (150, 156, 168)
"""Error messages in captions."""
AMBER: Colour = (255, 180, 0)
"""The verdict "no target"."""
RED: Colour = (255, 86, 86)
"""The verdict "error"."""
BLANK: Colour = (58, 58, 58)
"""The stand-in for an image that cannot be read."""


def ink_on(colour: Colour) -> Colour:
    """Dark or white, whichever is easier to read on this colour (by luma, ITU-R BT.601)."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE
