"""Answers as COCO annotations, with the expression as category and caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refcli.answers.jsonl import mask_to_json
from refcli.answers.written import AnsweredImage, AnsweredImages, Written, by_image, categories, json_parts, usable
from refcli.contracts.prediction import Answer, Target
from refcli.files import open_atomically
from refcli.geometry.masks import rle_area

FILE = "coco.json"


def write_coco(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `coco.json`: `images`, `categories` (one per expression) and `annotations`.

    Boxes are xywh in pixels, masks compressed run lengths with `counts` as text. Each annotation also has `score`,
    `caption` and `attributes` (expression and score, as CVAT reads them). Expressions without a target are listed with
    their image under `expressions_without_target`.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written([FILE])
    images = by_image(usable(answers, written, min_score=min_score))
    with open_atomically(out / FILE) as file:
        file.writelines(json_parts(coco_document(images)))
    return written


def coco_document(images: AnsweredImages) -> dict[str, Any]:
    """The document, with iterators as lists; ids count from 1."""
    names = categories(images)
    return {
        "info": {"description": "answers of refcli to referring expressions"},
        "images": (_image(number, image) for number, image in enumerate(images, 1)),
        "categories": ({"id": index + 1, "name": name, "supercategory": ""} for name, index in names.items()),
        "annotations": _annotations(images, names),
    }


def _annotations(images: AnsweredImages, names: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    found = ((number, pair) for number, image in enumerate(images, 1) for pair in image.found)
    for ident, (number, (answer, target)) in enumerate(found, 1):
        ids = {"id": ident, "image_id": number, "category_id": names[answer.expression] + 1}
        yield ids | _annotation(answer, target)


def _image(number: int, image: AnsweredImage) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": number,
        "file_name": image.image,
        "width": image.width,
        "height": image.height,
    }
    absent = [answer.expression for answer in image.answers if not answer.targets]
    return record | ({"expressions_without_target": absent} if absent else {})


def _annotation(answer: Answer, target: Target) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(side, 2) for side in target.box_xyxy)
    mask = target.mask
    return {
        "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
        "area": float(rle_area(mask)) if mask else max(x2 - x1, 0.0) * max(y2 - y1, 0.0),
        "iscrowd": 0,
        "segmentation": mask_to_json(mask) if mask else [],
        "score": round(target.score, 5),
        "caption": answer.expression,
        "attributes": {"expression": answer.expression, "score": round(target.score, 5)},
    }
