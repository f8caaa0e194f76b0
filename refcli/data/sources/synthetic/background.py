"""Backdrops: plain, gradient, noise, checker and weak textures."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from refcli.data.language.dice import Dice

PATTERNS = ("plain", "gradient", "clouds", "checker", "bands", "speckle")
GRAIN_SIDE = 512
GRAIN_SEED = 7
"""Seed of the grain: one fixed tile, cut at a random place; drawing it anew would double the cost of a scene."""


@dataclass(frozen=True)
class Backdrop:
    """The background of a scene."""

    pattern: str
    colours: np.ndarray
    """Float32[2, 3]: the two RGB colours between which the pattern varies."""


def draw_backdrop(dice: Dice) -> Backdrop:
    """A random backdrop: pale, dark or of medium brightness, and never strongly coloured."""
    tone = dice.weighted(("pale", "dark", "middle"), (0.55, 0.25, 0.2))
    hue = dice.unit()
    if tone == "pale":
        saturation, value, swing = dice.between(0, 0.22), dice.between(0.82, 1.0), -0.09
    elif tone == "dark":
        saturation, value, swing = dice.between(0, 0.5), dice.between(0.06, 0.26), 0.1
    else:
        saturation, value, swing = dice.between(0.05, 0.4), dice.between(0.45, 0.7), 0.1
    other = min(1.0, max(0.0, value + swing * dice.between(0.5, 1.0)))
    second_hue = (hue + dice.between(-0.12, 0.12)) % 1.0
    colours = np.array([hsv_to_rgb(hue, saturation, value), hsv_to_rgb(second_hue, saturation, other)])
    return Backdrop(dice.pick(PATTERNS), (colours * 255).astype(np.float32))


@cache
def _grain() -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(GRAIN_SEED))
    return rng.normal(0, 1, (GRAIN_SIDE, GRAIN_SIDE, 1)).astype(np.float32)


def _cut(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    tile = _grain()
    while tile.shape[0] < height or tile.shape[1] < width:
        tile = np.concatenate([np.concatenate([tile, tile], axis=0)] * 2, axis=1)
    top, left = rng.integers(0, [tile.shape[0] - height + 1, tile.shape[1] - width + 1])
    return tile[top : top + height, left : left + width]


def paint_backdrop(backdrop: Backdrop, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """The backdrop as Float32[height, width, 3], RGB 0..255."""
    first, second = backdrop.colours
    mix = _mix(backdrop.pattern, height, width, rng)
    return np.asarray(first + mix[..., None] * (second - first), dtype=np.float32)


def grain(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Fine camera noise of a random strength, Float32[height, width, 1]."""
    return np.asarray(_cut(rng, height, width) * np.float32(rng.uniform(0.5, 4.0)))


def _mix(pattern: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Float32[height, width] in 0..1: the share of the backdrop's second colour."""
    angle = rng.uniform(0, 2 * np.pi)
    along_x = np.arange(width, dtype=np.float32)[None] * np.float32(np.cos(angle))
    along_y = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    if pattern == "gradient":
        ramp = along_x + along_y
        return np.asarray((ramp - ramp.min()) / np.ptp(ramp))
    if pattern == "clouds":
        cells = int(rng.integers(3, 9))
        coarse = rng.random((cells, cells), dtype=np.float32)
        return np.asarray(np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1))
    if pattern == "checker":
        cell = int(rng.integers(10, 30))
        rows, columns = np.arange(height) // cell % 2, np.arange(width) // cell % 2
        return (rows[:, None] ^ columns[None]).astype(np.float32)
    if pattern == "bands":
        period = rng.uniform(8, 30)
        return np.asarray(0.5 + 0.5 * np.sin((along_x + along_y) * np.float32(2 * np.pi / period)))
    if pattern == "speckle":
        return np.asarray(np.clip(0.5 + 0.35 * cv2.blur(_cut(rng, height, width), (3, 3)) * 3, 0, 1))
    return np.full((height, width), np.float32(rng.random()))
