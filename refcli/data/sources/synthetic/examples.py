"""From a scene to examples: the image, and one Example per expression with exact boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from refcli.contracts.example import RLE, Example, Region
from refcli.data.language.dice import Dice, generator
from refcli.data.sources.synthetic.graph import graph_of
from refcli.data.sources.synthetic.language import SceneExpression, describe
from refcli.data.sources.synthetic.render import RenderedImage, render
from refcli.data.sources.synthetic.scene import Scene, draw_scene
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.errors import ConfigError

DATASET = "synthetic"
SCENES_PER_FOLDER = 1000
MAX_ATTEMPTS = 500
"""Layouts tried for a scene before its settings are reported as impossible; by default the first nearly always fits."""


@dataclass(frozen=True)
class RenderedScene:
    """An image and its expressions."""

    image: np.ndarray
    """UInt8[height, width, 3], RGB."""
    examples: tuple[Example, ...]
    scene: Scene
    expressions: tuple[SceneExpression, ...]
    """In the order of the examples."""


def image_path(split: str, index: int) -> str:
    """Path of a scene's image below the data set's folder."""
    return f"images/{split}/{index // SCENES_PER_FOLDER:03d}/{index:06d}.jpg"


def render_scene(
    settings: SyntheticSettings, split: str, index: int, *, max_attempts: int = MAX_ATTEMPTS
) -> RenderedScene:
    """Scene number `index` of a split: always the same for the same settings.

    If an object would be hidden too much, another layout is drawn.

    Raises:
        ConfigError: the canvas has no room for the number of objects.
    """
    for attempt in range(max_attempts):
        scene = draw_scene(settings, generator(settings.seed, split, index, attempt, "layout"))
        if scene is not None:
            rendered = render(scene, generator(settings.seed, split, index, attempt, "picture"))
            if min(rendered.visible_share) >= settings.min_visible:
                break
    else:
        raise ConfigError(
            f"no layout fits the settings in {max_attempts} attempts",
            where=f"synthetic:{split} scene {index}",
            hint="ask for fewer objects, a larger canvas, or a smaller min_visible",
        )
    dice = Dice(generator(settings.seed, split, index, attempt, "language"))
    expressions = describe(graph_of(scene), settings, dice)
    regions = _regions(scene, rendered)
    image_id = f"{DATASET}/{split}/{index:06d}"
    examples = tuple(
        Example(
            id=f"{image_id}/{number}",
            dataset=DATASET,
            split=split,
            image=image_path(split, index),
            image_id=image_id,
            width=scene.width,
            height=scene.height,
            expression=expression.text,
            regions=tuple(regions[target] for target in expression.targets),
            kind=expression.kind,
        )
        for number, expression in enumerate(expressions)
    )
    return RenderedScene(rendered.image, examples, scene, expressions)


def _regions(scene: Scene, rendered: RenderedImage) -> list[Region]:
    """The visible part of every object."""
    numbers = np.arange(len(scene.objects), dtype=np.int8)
    masks = (np.ascontiguousarray(rendered.owner.T)[None] == numbers[:, None, None]).view(np.uint8).T
    regions = []
    for number, run_lengths in enumerate(coco_mask.encode(masks)):
        left, top, width, height = coco_mask.toBbox(run_lengths).tolist()
        rle = RLE((scene.height, scene.width), run_lengths["counts"])
        regions.append(Region((left, top, left + width, top + height), rle, str(number)))
    return regions
