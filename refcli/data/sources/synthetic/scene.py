"""Scenes: the objects and their places, before rendering and expressions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import hypot

import numpy as np

from refcli.data.language.dice import Dice
from refcli.data.sources.synthetic.background import Backdrop, draw_backdrop
from refcli.data.sources.synthetic.palette import FILLS, contrasting
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.synthetic.shapes import SHAPES, rotate, shape_table

FILL_WEIGHTS = {"solid": 0.4, "striped": 0.22, "dotted": 0.2, "outlined": 0.18}
PLACE_TRIES = 30
"""Random positions tried for one object before it is left out."""
CLEAR = 1.06
"""Least distance of centres, in sums of both radii, if objects must not touch; always applies to equal colours."""
CLASS_GAP = 1.45
"""Least ratio of the size of a "big" object to that of a "small" one."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object; lengths in pixels, x to the right and y downwards."""

    shape: str
    colour: str
    fill: str
    size_class: str | None
    """"small" or "big" in scenes of two clearly different sizes, else None."""
    size: float
    """Visual size: see `Shape`."""
    x: float
    """Centre of the silhouette's box."""
    y: float
    rotation: float
    half_width: float
    """Half the width of the silhouette's box."""
    half_height: float


@dataclass(frozen=True)
class Scene:
    """The content of an image; later objects lie on top of earlier ones."""

    width: int
    height: int
    backdrop: Backdrop
    palette: tuple[str, ...]
    """The colours that stand out from this backdrop."""
    objects: tuple[SceneObject, ...]
    shadow: tuple[float, float, float] | None
    """(x shift, y shift, darkness): the shifts in units of an object's size."""

    @property
    def short_side(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)


@cache
def allowed_fills(shape: str) -> tuple[str, ...]:
    """The fills of this shape."""
    return shape_table()[shape].fills


@cache
def _half_extent(shape: str, degrees: int) -> tuple[float, float]:
    """Half the box of a shape of size 1, rotated by whole degrees."""
    points = rotate(shape_table()[shape].outline, degrees)
    width, height = points.max(axis=0) - points.min(axis=0)
    return float(width) / 2, float(height) / 2


def draw_scene(settings: SyntheticSettings, rng: np.random.Generator) -> Scene | None:
    """A random scene; None if too few objects found a place."""
    dice = Dice(rng)
    width, height = _draw_canvas(settings.canvas, dice)
    backdrop, colours = _draw_backdrop_and_colours(dice)
    count = dice.integer(*settings.objects)
    kinds = _draw_attributes(count, colours, dice)
    sizes = _draw_sizes(count, min(width, height), dice)
    crowding = dice.between(0.66, 0.95) if dice.chance(settings.overlap) else CLEAR
    objects = _place(kinds, sizes, (width, height), crowding, dice)
    if len(objects) < settings.objects[0]:
        return None
    if len({item.size_class for item in objects}) == 1:
        objects = [replace(item, size_class=None) for item in objects]
    shadow = None
    if dice.chance(settings.shadows):
        shadow = (dice.between(-0.16, 0.16), dice.between(0.06, 0.16), dice.between(0.2, 0.4))
    return Scene(width, height, backdrop, tuple(colours), tuple(objects), shadow)


def _draw_canvas(sides: tuple[int, int], dice: Dice) -> tuple[int, int]:
    long = dice.integer(*sides)
    short = dice.integer(max(sides[0], -(-long * 3 // 4)), long) if sides[0] < long else long
    return (long, short) if dice.chance(0.5) else (short, long)


def _draw_backdrop_and_colours(dice: Dice) -> tuple[Backdrop, list[str]]:
    while True:
        backdrop = draw_backdrop(dice)
        colours = contrasting(backdrop.colours)
        if len(colours) >= 6:
            return backdrop, colours


def _draw_attributes(count: int, colours: list[str], dice: Dice) -> list[tuple[str, str, str]]:
    """(shape, colour, fill) of every object, from small pools, so that objects share attributes."""
    shapes = dice.sample(SHAPES, dice.weighted((2, 3, 4, 5), (0.3, 0.35, 0.25, 0.1)))
    colours = dice.sample(colours, dice.weighted((2, 3, 4, 5), (0.3, 0.35, 0.25, 0.1)))
    fills = {dice.weighted(FILLS, [FILL_WEIGHTS[fill] for fill in FILLS]) for _ in range(dice.integer(1, 3))}
    fills.add("solid" if dice.chance(0.8) else dice.pick(FILLS))
    pool = sorted(fills)
    drawn = []
    for _ in range(count):
        shape = dice.pick(shapes)
        fill = dice.pick([fill for fill in pool if fill in allowed_fills(shape)] or ["solid"])
        drawn.append((shape, dice.pick(colours), fill))
    if dice.chance(0.25):
        odd_one = dice.integer(0, count - 1)
        drawn[odd_one] = (dice.pick(SHAPES), dice.pick(colours), "solid")
    return drawn


def _draw_sizes(count: int, short_side: int, dice: Dice) -> list[tuple[float, str | None]]:
    """(size in pixels, size class) of every object: all alike, two classes, or all different."""
    room = max(0.0, min(1.0, (9 - count) / 6))
    low, high = 0.165 + 0.04 * room, 0.225 + 0.105 * room
    layout = dice.weighted(("alike", "classes", "graded"), (0.3, 0.5, 0.2))
    if layout == "alike":
        base = dice.between(low, high)
        return [(short_side * base * dice.between(0.95, 1.05), None) for _ in range(count)]
    if layout == "graded":
        return [(short_side * dice.between(low, high), None) for _ in range(count)]
    small = dice.between(0.165, 0.165 + 0.03 * room + 0.01)
    big = small * CLASS_GAP * dice.between(1.06, 1.16 + 0.2 * room)
    share = dice.between(0.3, 0.6)
    classes = ["big" if dice.chance(share) else "small" for _ in range(count)]
    if len(set(classes)) == 1:
        classes[dice.integer(0, count - 1)] = "small" if classes[0] == "big" else "big"
    base_of = {"small": small, "big": big}
    return [(short_side * base_of[name] * dice.between(0.97, 1.03), name) for name in classes]


def _place(
    kinds: list[tuple[str, str, str]],
    sizes: list[tuple[float, str | None]],
    canvas: tuple[int, int],
    crowding: float,
    dice: Dice,
) -> list[SceneObject]:
    """Place the objects, the largest first, and shuffle them; objects that do not fit are left out."""
    table = shape_table()
    placed: list[SceneObject] = []
    radii: list[float] = []
    for (shape, colour, fill), (size, size_class) in sorted(
        zip(kinds, sizes, strict=True), key=lambda item: -item[1][0]
    ):
        unit = table[shape]
        degrees = round(dice.pick(unit.rotations) + dice.between(-unit.wobble, unit.wobble))
        half_width, half_height = (size * half for half in _half_extent(shape, degrees))
        radius = 0.5 * (max(half_width, half_height) + hypot(half_width, half_height) * 0.8)
        for _ in range(PLACE_TRIES):
            x = dice.between(half_width + 2, canvas[0] - half_width - 2)
            y = dice.between(half_height + 2, canvas[1] - half_height - 2)
            if all(
                hypot(x - other.x, y - other.y)
                >= (CLEAR if other.colour == colour else crowding) * (radius + other_radius)
                for other, other_radius in zip(placed, radii, strict=True)
            ):
                placed.append(
                    SceneObject(shape, colour, fill, size_class, size, x, y, degrees, half_width, half_height)
                )
                radii.append(radius)
                break
    return dice.sample(placed, len(placed))
