"""From an image and its Example to one Sample of the model frame, as it is or changed for training."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example
from refcli.data.training.augmentation import draw_view, jitter_colours
from refcli.data.training.views import View, enclosing_box
from refcli.geometry.frame import Frame
from refcli.text.phrases import swap_left_right

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in 0..1 (OneRef's transforms)."""

_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
_NORMALISED: Float32[np.ndarray, "3 256"] = np.stack(
    [(_LEVELS - np.float32(mean)) / np.float32(std) for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
)


@dataclass(frozen=True)
class Sample:
    """One (image, expression) pair in the model frame."""

    id: str
    kind: str | None
    expression: str
    image: Float32[np.ndarray, "3 height width"]
    """Normalised RGB; zero outside the image."""
    box_cxcywh: Float32[np.ndarray, " 4"]
    """Encloses all regions, in parts of the model frame; zero where `exists` is False."""
    mask: Bool[np.ndarray, "height width"]
    """Union of all regions; a region without a mask fills its box."""
    mask_is_known: bool
    """Every region has a mask of its own."""
    exists: bool


def letterbox(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image, tower: TowerSettings, *, size: tuple[int, int] | None = None
) -> tuple[Float32[np.ndarray, "3 model_height model_width"], Frame]:
    """The evaluation transform of an image alone, and the frame that leads back to its pixels.

    `size` is the (width, height) of the original where the image is a reduced one; the frame leads to its pixels.
    """
    source = image if isinstance(image, Image.Image) else Image.fromarray(image)
    model_height, model_width = tower.image_size
    frame = Frame.fit(*(size or source.size), model_width, model_height)
    view = View((0, 0, *source.size), False, frame)
    return place(view.picture(source), frame), frame


def place(picture: Image.Image, frame: Frame) -> Float32[np.ndarray, "3 model_height model_width"]:
    """Normalise an image that already has its size in the model frame, and put it on a canvas of zeros."""
    canvas = np.zeros((3, frame.model_height, frame.model_width), dtype=np.float32)
    rows = slice(frame.top, frame.top + frame.resized_height)
    columns = slice(frame.left, frame.left + frame.resized_width)
    for table, levels, plane in zip(_NORMALISED, picture.split(), canvas, strict=True):
        plane[rows, columns] = table[np.asarray(levels)]
    return canvas


def make_sample(
    image: Image.Image, example: Example, *, tower: TowerSettings, augment: AugmentSettings | None, draw: int
) -> Sample:
    """One Sample; without `augment` by the evaluation transform (OneRef), else changed as `draw` decides.

    Args:
        image: RGB, of the size that the example states.
        example: the expression and its regions.
        tower: gives the size of the model frame.
        augment: how training images are changed, or None.
        draw: seed of the changes.
    """
    if augment is None:
        model_height, model_width = tower.image_size
        view = View.whole(image.width, image.height, model_width, model_height)
        expression, picture = example.expression, view.picture(image)
    else:
        rng = random.Random(draw)
        view = draw_view(rng, example, tower, augment)
        expression = swap_left_right(example.expression) if view.is_mirrored else example.expression
        picture = jitter_colours(rng, view.picture(image), augment)
    return Sample(
        id=example.id,
        kind=example.kind,
        expression=expression,
        image=place(picture, view.frame),
        box_cxcywh=_box_target(example, view),
        mask=view.mask(example.regions, example.height, example.width),
        mask_is_known=all(region.mask is not None for region in example.regions),
        exists=bool(example.regions),
    )


def _box_target(example: Example, view: View) -> Float32[np.ndarray, " 4"]:
    enclosing = enclosing_box(example.regions)
    if enclosing is None:
        return np.zeros(4, dtype=np.float32)
    x1, y1, x2, y2 = view.boxes(enclosing[None])[0]
    width, height = view.frame.model_width, view.frame.model_height
    parts = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    return np.array(parts, dtype=np.float32)
