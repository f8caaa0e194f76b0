"""Answers as labelme files, which X-AnyLabeling and ISAT read as well: one JSON file per image."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refcli.answers.written import AnsweredImage, Written, by_image, file_names, image_file, usable
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.files import write_atomically
from refcli.geometry.masks import decode_mask, mask_box

VERSION = "5.5.0"
"""Version of the labelme format: the earliest that all current readers accept, with masks as shapes."""


def write_labelme(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `<image>.json` per image: a rectangle per target, and a mask per target that has one.

    A mask is a shape of type `mask`: a PNG cropped to its extent. The `description` of a shape is its score; `group_id`
    joins the rectangle and the mask of one target. `imagePath` is relative to the files, as labelme reads it, if the
    image is found from the current folder.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written()
    images = by_image(usable(answers, written, min_score=min_score))
    for image, name in zip(images, file_names(images, ".json"), strict=True):
        write_atomically(
            out / name, json.dumps(labelme_document(image, _image_path(image.image, out)), indent=1).encode()
        )
        written.files.append(name)
    return written


def _image_path(image: str, out: Path) -> str:
    file = image_file(image)
    if file is None:
        return image
    try:
        return Path(os.path.relpath(file, out.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return str(file)


def labelme_document(image: AnsweredImage, image_path: str) -> dict[str, Any]:
    """The document of one image; the image itself is not embedded."""
    shapes = [
        shape for number, (answer, target) in enumerate(image.found, 1) for shape in _shapes(number, answer, target)
    ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image.height,
        "imageWidth": image.width,
    }


def _shapes(number: int, answer: Answer, target: Target) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = (round(side, 2) for side in target.box_xyxy)
    shared = {
        "label": answer.expression,
        "group_id": number,
        "description": f"score {target.score:.5f}",
        "flags": {},
        "mask": None,
    }
    shapes = [shared | {"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}]
    if target.mask is not None:
        left, top, right, bottom = (int(side) for side in mask_box(target.mask))
        corners = [[left, top], [max(right - 1, left), max(bottom - 1, top)]]
        if right > left:
            png = mask_png(target.mask, (left, top, right, bottom))
            shapes.append(shared | {"shape_type": "mask", "points": corners, "mask": png})
    return shapes


def mask_png(mask: RLE, extent: tuple[int, int, int, int]) -> str:
    """The part of a mask within (left, top, right, bottom) as a PNG in base64, 0 and 255."""
    left, top, right, bottom = extent
    part = np.ascontiguousarray(decode_mask(mask)[top:bottom, left:right]).astype(np.uint8) * 255
    _, png = cv2.imencode(".png", part)
    return base64.b64encode(png.tobytes()).decode("ascii")
