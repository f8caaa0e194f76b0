"""Random views and colours of training images; every region stays completely visible."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example
from refcli.data.training.transforms import View
from refcli.geometry.boxes import enclosing_box
from refcli.geometry.frame import Frame
from refcli.text.phrases import mentions_position

SHORTEST_CROP = 0.5
"""A crop keeps at least this fraction of each side."""


def draw_view(rng: random.Random, example: Example, tower: TowerSettings, augment: AugmentSettings) -> View:
    """Draw a view that shows every region of the example completely."""
    model_height, model_width = tower.image_size
    crop = (0, 0, example.width, example.height)
    is_mirrored = rng.random() < augment.flip
    if rng.random() < augment.crop and not mentions_position(example.expression):
        crop = _draw_crop(rng, example)
    scale = rng.uniform(augment.min_scale, 1.0)
    frame = Frame.fit(crop[2] - crop[0], crop[3] - crop[1], model_width, model_height, scale=scale)
    if augment.translate:
        left = rng.randint(0, model_width - frame.resized_width)
        frame = replace(frame, left=left, top=rng.randint(0, model_height - frame.resized_height))
    return View(crop, is_mirrored, frame)


def jitter_colours(rng: random.Random, image: Image.Image, augment: AugmentSettings) -> Image.Image:
    """Change brightness, contrast and saturation by factors of 1 +- `colour_jitter`, in random order."""
    strength = augment.colour_jitter
    if strength == 0 or rng.random() >= augment.colour_jitter_probability:
        return image
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(changes)
    for change in changes:
        image = change(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _draw_crop(rng: random.Random, example: Example) -> tuple[int, int, int, int]:
    enclosing = enclosing_box([region.box_xyxy for region in example.regions])
    spans = []
    for axis, size in ((0, example.width), (1, example.height)):
        first, last = 0, 0  # the pixels to keep along this axis
        if enclosing is None:
            first = last = rng.randint(0, size)
        else:
            first = min(max(int(np.floor(enclosing[axis])), 0), size)
            last = min(max(int(np.ceil(enclosing[axis + 2])), 0), size)
        length = rng.randint(max(last - first, round(size * SHORTEST_CROP), 1), size)
        start = rng.randint(max(0, last - length), min(first, size - length))
        spans.append((start, start + length))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom
