"""Small exports of labelling tools: labelled boxes, polygons and masks of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from corpora.corpus import HEIGHT, WIDTH, Box, Corpus, Truth
from corpora.json_sets import LEFT, RIGHT, list_mask, percent
from refcli.contracts.example import RLE
from refcli.geometry.brush_masks import brush_run_lengths


def box_result(box: Box, label: str, **fields: Any) -> dict[str, Any]:
    """A rectangle of an annotation of Label Studio."""
    sides = percent(box)
    sizes = {key: sides.pop(key) for key in ("original_width", "original_height")}
    value = sides | {"rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"{label}-{box}", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value,
        "image_rotation": 0, "origin": "manual", **sizes, **fields,
    }  # fmt: skip


def brush_result(box: Box, label: str, **fields: Any) -> dict[str, Any]:
    """A brush mask that covers a whole box."""
    mask = coco.frPyObjects(list_mask(box), HEIGHT, WIDTH)
    rle = brush_run_lengths(RLE((HEIGHT, WIDTH), mask["counts"]))
    value = {"format": "rle", "rle": rle, "brushlabels": [label]}
    return {
        "id": f"{label}-{box}", "from_name": "mask", "to_name": "image", "type": "brushlabels", "value": value,
        "image_rotation": 0, "original_width": WIDTH, "original_height": HEIGHT, **fields,
    }  # fmt: skip


def studio_annotation(*results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An annotation of Label Studio."""
    return {
        "id": 1,
        "completed_by": 1,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        **fields,
    }


def studio_task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    """A task of Label Studio's export; the image comes last, as there."""
    return {
        "id": number, "annotations": list(annotations), "drafts": [], "predictions": [],
        "data": {"image": f"/data/local-files/?d=photos/{number}.jpg"} | data,
    }  # fmt: skip


def write_studio(path: Path, tasks: Sequence[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(tasks))
    return path


def _write_label_studio(folder: Path) -> Path:
    both = box_result(LEFT, "cup", id="box-0"), brush_result(LEFT, "cup", id="mask-0"), brush_result(RIGHT, "cup")
    asked = {"width": WIDTH, "height": HEIGHT, "expressions": ["cup", "the fork"]}
    tasks = (
        studio_task(7, studio_annotation(*both), **asked),
        studio_task(8, studio_annotation(box_result(RIGHT, "the plate"))),
        studio_task(9, studio_annotation(box_result(RIGHT, "cup"), was_cancelled=True)),
    )
    return write_studio(folder / "export_val.json", tasks)


LABEL_TOOLS: dict[str, Corpus] = {
    "label_studio": Corpus(
        _write_label_studio,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"task_without_annotation": 1},
        truth=Truth("tiny/7/0", "val", "cup", "tiny:photos/7.jpg", (LEFT, RIGHT), (20 * 40, 40 * 40)),
    ),
}
"""Row of the table of sources -> its corpus."""
