"""Rendering a scene: anti-aliased objects over a backdrop, and the visible mask of each object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from refcli.data.sources.synthetic.background import grain, paint_backdrop
from refcli.data.sources.synthetic.palette import COLOUR_JITTER, COLOURS, outline_core, pattern_tone
from refcli.data.sources.synthetic.scene import Scene, SceneObject
from refcli.data.sources.synthetic.shapes import rotate, shape_table

OVERSAMPLING = 4
"""Factor by which silhouettes are drawn larger before they are averaged down."""
FIXED_POINT_BITS = 4
BORDER_GROWTH = 0.36
"""Pixels by which `cv2.fillPoly` widens a figure: it also fills oversampled pixels that the border touches."""
OUTLINE_SHARE = 0.13
"""Width of the outline of an outlined object relative to its size."""
EDGE_SHARE = 0.045
"""Width of the plain edge around stripes and dots: without it their pale parts would blend into a pale backdrop."""


@dataclass(frozen=True)
class RenderedImage:
    """A rendered scene."""

    image: np.ndarray
    """UInt8[height, width, 3], RGB."""
    owner: np.ndarray
    """Int8[height, width]: the number of the object visible at a pixel (coverage >= 0.5), -1 for the backdrop."""
    visible_share: tuple[float, ...]
    """Of each object: visible pixels over the pixels of its whole silhouette."""


def render(scene: Scene, rng: np.random.Generator) -> RenderedImage:
    """Paint the backdrop, then the objects in their order."""
    height, width = scene.height, scene.width
    canvas = paint_backdrop(scene.backdrop, height, width, rng)
    owner = np.full((height, width), -1, dtype=np.int8)
    whole = []
    for number, item in enumerate(scene.objects):
        left, top = int(item.x - item.half_width) - 2, int(item.y - item.half_height) - 2
        right, bottom = int(item.x + item.half_width) + 3, int(item.y + item.half_height) + 3
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        coverage, rim = _silhouette(item, left, top, right - left, bottom - top)
        if scene.shadow:
            _cast_shadow(canvas, coverage, item, left, top, scene.shadow)
        patch = canvas[top:bottom, left:right]
        patch += coverage[..., None] * (_surface(item, rim, left, top, right, bottom, rng) - patch)
        solid = coverage >= 0.5
        owner[top:bottom, left:right][solid] = number
        whole.append(int(np.count_nonzero(solid)))
    canvas += grain(height, width, rng)
    seen = np.bincount((owner.ravel() + 1).astype(np.intp), minlength=len(whole) + 1)[1:]
    share = tuple(float(part) / max(full, 1) for part, full in zip(seen.tolist(), whole, strict=True))
    return RenderedImage(np.clip(canvas + 0.5, 0, 255).astype(np.uint8), owner, share)


def _silhouette(
    item: SceneObject, left: int, top: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The object's coverage of its patch, Float32[height, width] in 0..1, and that of its plain edge."""
    unit = shape_table()[item.shape]
    large = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), dtype=np.uint8)
    middle = np.array([item.x - left, item.y - top])
    shape_middle = rotate(unit.outline, item.rotation)
    offset = (shape_middle.max(axis=0) + shape_middle.min(axis=0)) / 2
    factor = OVERSAMPLING * (1 << FIXED_POINT_BITS)

    def fixed(outline: np.ndarray) -> np.ndarray:
        points = (rotate(outline, item.rotation) - offset) * (item.size - BORDER_GROWTH) + middle
        return np.asarray(np.rint(points * factor - factor / (2 * OVERSAMPLING)), dtype=np.int32)

    outlines = [fixed(unit.outline)] + ([fixed(unit.hole)] if unit.hole is not None else [])
    cv2.fillPoly(large, outlines, 255, lineType=cv2.LINE_8, shift=FIXED_POINT_BITS)
    coverage = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    if item.fill == "solid":
        return coverage, None
    share = OUTLINE_SHARE if item.fill == "outlined" else EDGE_SHARE
    thickness = max(1, round(2 * share * item.size * OVERSAMPLING))
    line = np.zeros_like(large)
    cv2.polylines(line, outlines, True, 255, thickness, lineType=cv2.LINE_8, shift=FIXED_POINT_BITS)
    return coverage, cv2.resize(line, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _cast_shadow(
    canvas: np.ndarray, coverage: np.ndarray, item: SceneObject, left: int, top: int, shadow: tuple[float, float, float]
) -> None:
    """Darken the canvas beside the object."""
    shift_x, shift_y = round(shadow[0] * item.size), round(shadow[1] * item.size)
    soft = cv2.blur(cv2.copyMakeBorder(coverage, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=0), (5, 5))
    y0, x0 = top + shift_y - 3, left + shift_x - 3
    y1, x1 = min(y0 + soft.shape[0], canvas.shape[0]), min(x0 + soft.shape[1], canvas.shape[1])
    cut_y, cut_x = max(0, -y0), max(0, -x0)
    part = soft[cut_y : y1 - y0, cut_x : x1 - x0]
    canvas[y0 + cut_y : y1, x0 + cut_x : x1] *= 1 - shadow[2] * part[..., None]


def _surface(
    item: SceneObject, rim: np.ndarray | None, left: int, top: int, right: int, bottom: int, rng: np.random.Generator
) -> np.ndarray:
    """The object's colours, Float32 broadcastable to [height, width, 3] of its patch."""
    draws = rng.random(8)
    colour = np.array(COLOURS[item.colour], dtype=np.float32)
    colour += ((draws[:3] - 0.5) * 2 * COLOUR_JITTER).astype(np.float32)
    if rim is None:
        return colour
    if item.fill == "outlined":
        core = np.array(outline_core(item.colour), dtype=np.float32)
        return np.asarray(core + rim[..., None] * (colour - core))
    tone = np.array(pattern_tone(item.colour), dtype=np.float32)
    angle = draws[3] * 2 * np.pi
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(item.x)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(item.y)
    across, along = x * cos + y * sin, y * cos - x * sin
    if item.fill == "striped":
        period = np.float32(item.size / (3.0 + draws[4]))
        wave = np.abs((across / period + np.float32(draws[5])) % 1 - np.float32(0.5)) - np.float32(0.27)
        share = np.clip(wave * period + np.float32(0.5), 0, 1)
    else:
        spacing = np.float32(item.size / (3.2 + 0.6 * draws[4]))
        u = (across / spacing + np.float32(draws[5])) % 1 - np.float32(0.5)
        v = (along / spacing + np.float32(draws[6])) % 1 - np.float32(0.5)
        share = np.clip((np.float32(0.31) - np.sqrt(u * u + v * v)) * spacing + np.float32(0.5), 0, 1)
    return np.asarray(colour + (share * (1 - rim))[..., None] * (tone - colour))
