"""The shapes of the synthetic objects as polygons of unit size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

TURN = 2 * np.pi


@dataclass(frozen=True)
class Shape:
    """A closed outline around the origin, y pointing down, whose visual size is 1.

    The visual size is the geometric mean of the longest side of the outline's box and of the diameter of the disc
    with the outline's area, so that shapes of equal size look equally big.
    """

    outline: np.ndarray
    """Float[points, 2]."""
    hole: np.ndarray | None
    """Outline of a hole, or None."""
    rotations: tuple[float, ...]
    """Main orientations in degrees."""
    wobble: float
    """Largest rotation away from a main orientation in degrees."""
    fills: tuple[str, ...] = ("solid", "striped", "dotted", "outlined")
    """Fills that keep the shape recognisable."""


def _arc(start: float, end: float, points: int, radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(start, end, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, first: float = -TURN / 4) -> np.ndarray:
    return _arc(first, first + TURN, corners + 1)[:-1]


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _regular(10) * radii[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, TURN, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _cross() -> np.ndarray:
    a = 0.34
    corners = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
        (-a, -a),
    ]
    return np.array(corners, dtype=float)


def _crescent() -> np.ndarray:
    outer = _arc(TURN * 0.14, TURN * 0.86, 40)
    tip = outer[0]
    centre = 0.62
    radius = float(np.hypot(tip[0] - centre, tip[1]))
    angle = float(np.arctan2(tip[1], tip[0] - centre))
    inner = _arc(TURN - angle, angle, 28, radius) + np.array([centre, 0.0])
    return np.concatenate([outer, inner[1:-1]])


def _arrow() -> np.ndarray:
    corners = [(-1, -0.26), (0.05, -0.26), (0.05, -0.78), (1, 0), (0.05, 0.78), (0.05, 0.26), (-1, 0.26)]
    return np.array(corners, dtype=float)


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _unit(
    outline: np.ndarray,
    rotations: tuple[float, ...],
    wobble: float,
    *,
    hole: np.ndarray | None = None,
    fills: tuple[str, ...] = ("solid", "striped", "dotted", "outlined"),
) -> Shape:
    low, high = outline.min(axis=0), outline.max(axis=0)
    disc = 2 * np.sqrt(_area(outline) / np.pi)
    scale = 1 / np.sqrt(float((high - low).max()) * disc)
    middle = (low + high) / 2
    return Shape(
        (outline - middle) * scale, None if hole is None else (hole - middle) * scale, rotations, wobble, fills
    )


@cache
def shape_table() -> dict[str, Shape]:
    """Shape word -> outline; orientations are limited so that no shape looks like another."""
    box = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    massive = ("solid", "striped", "dotted")
    return {
        "circle": _unit(_regular(48), (0,), 0, fills=massive),
        "square": _unit(box, (0,), 14),
        "triangle": _unit(_regular(3), (0, 180), 24),
        "rectangle": _unit(box * (1.0, 0.46), (0, 90), 16),
        "oval": _unit(_regular(48) * (1.0, 0.54), (0, 90), 24),
        "star": _unit(_star(), (0,), 36),
        "heart": _unit(_heart(), (0,), 22),
        "diamond": _unit(np.array([(0, -1.0), (0.66, 0), (0, 1.0), (-0.66, 0)]), (0,), 10),
        "cross": _unit(_cross(), (0,), 14, fills=massive),
        "ring": _unit(_regular(48), (0,), 0, hole=_regular(48) * 0.5, fills=massive),
        "crescent": _unit(_crescent(), (0, 90, 180, 270), 30, fills=massive),
        "arrow": _unit(_arrow(), (0, 90, 180, 270), 20, fills=massive),
    }


SHAPES = (
    "circle",
    "square",
    "triangle",
    "rectangle",
    "oval",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
    "crescent",
    "arrow",
)
"""Every shape word."""


def rotate(outline: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate an outline about the origin."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.array([[cos, sin], [-sin, cos]]))
