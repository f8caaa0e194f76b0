"""Answers as a FiftyOne dataset on disk (`FiftyOneDataset`), readable without FiftyOne as plain JSON."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refcli.answers.written import AnsweredImage, Written, by_image, image_file, json_parts, usable
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.files import open_atomically, write_atomically
from refcli.geometry.masks import box_pixels, decode_mask

SAMPLES, METADATA = "samples.json", "metadata.json"
FIELD = "predictions"


def write_fiftyone(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `samples.json` and `metadata.json`: a `Detections` field `predictions` per image.

    Boxes are [x, y, width, height] as fractions of the image; masks are cropped to their boxes. `filepath` is absolute
    if the image is found from the current folder: FiftyOne searches for relative paths in the folder of its files.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written([SAMPLES, METADATA])
    images = by_image(usable(answers, written, min_score=min_score))
    with open_atomically(out / SAMPLES) as file:
        file.writelines(json_parts({"samples": map(_sample, images)}))
    write_atomically(out / METADATA, json.dumps({"media_type": "image", "info": {}}).encode())
    return written


def _sample(image: AnsweredImage) -> dict[str, Any]:
    detections = [_detection(answer, target) for answer, target in image.found]
    return {
        "filepath": str(image_file(image.image) or image.image),
        "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
        FIELD: {"_cls": "Detections", "detections": detections},
        "expressions_without_target": [answer.expression for answer in image.answers if not answer.targets],
    }


def _detection(answer: Answer, target: Target) -> dict[str, Any]:
    x1, y1, x2, y2 = target.box_xyxy
    width, height = answer.width, answer.height
    detection: dict[str, Any] = {
        "_cls": "Detection",
        "label": answer.expression,
        "bounding_box": [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
        "confidence": round(target.score, 5),
    }
    if target.mask is not None:
        detection["mask"] = packed_mask(target.mask, target.box_xyxy)
    return detection


def packed_mask(mask: RLE, box_xyxy: tuple[float, float, float, float]) -> dict[str, Any]:
    """The part of a mask within the pixels of its box, packed as FiftyOne does: zlib over the bytes of an .npy file."""
    left, top, right, bottom = box_pixels(box_xyxy, *mask.size)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(decode_mask(mask)[top:bottom, left:right]))
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")
    return {"$binary": {"base64": packed, "subType": "00"}}
