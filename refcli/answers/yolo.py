"""Answers as YOLO label files: a class per expression, boxes or outlines as fractions of the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import yaml

from refcli.answers.written import AnsweredImage, Written, by_image, categories, file_names, usable
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer
from refcli.files import write_atomically
from refcli.geometry.masks import decode_mask

LABELS = "labels"
CLASSES, DATA = "classes.txt", "data.yaml"


def write_yolo(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0, outlines: bool = False) -> Written:
    """Write `classes.txt` (one expression per line), `data.yaml` and `labels/<image>.txt`.

    With the images in a folder `images` beside `labels`, `data.yaml` is a data set of ultralytics. Images of different
    folders that share a name have numbered label files (`cup.txt`, `cup-2.txt`): rename their copies likewise.

    A line is `class cx cy w h`, or with `outlines` `class x y x y ...`: the largest outline of the mask; its holes and
    further parts are lost. Numbers are fractions of the image, clipped to it. The file of an image without a target
    is empty.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
        outlines: masks instead of boxes, where a target has one.
    """
    written = Written([CLASSES, DATA])
    images = by_image(usable(answers, written, min_score=min_score))
    names = categories(images)
    lines = [" ".join(name.split()) for name in names]
    write_atomically(out / CLASSES, "".join(f"{line}\n" for line in lines).encode())
    data = {"train": "images", "val": "images", "names": dict(enumerate(lines))}
    write_atomically(out / DATA, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())
    (out / LABELS).mkdir(exist_ok=True)
    for image, name in zip(images, file_names(images, ".txt"), strict=True):
        write_atomically(out / LABELS / name, _label_file(image, names, outlines=outlines).encode())
        written.files.append(f"{LABELS}/{name}")
    return written


def _label_file(image: AnsweredImage, names: Mapping[str, int], *, outlines: bool) -> str:
    lines = []
    for answer, target in image.found:
        outline = largest_outline(target.mask) if outlines and target.mask else None
        corners = np.array(target.box_xyxy).reshape(2, 2) if outline is None else outline
        corners = np.clip(corners / (image.width, image.height), 0.0, 1.0)
        if outline is None:
            corners = np.stack([corners.mean(0), np.maximum(corners[1] - corners[0], 0.0)])
        fractions = corners.ravel().tolist()
        lines.append(" ".join([str(names[answer.expression]), *(f"{fraction:.6f}" for fraction in fractions)]))
    return "".join(f"{line}\n" for line in lines)


def largest_outline(mask: RLE) -> np.ndarray | None:
    """The outline with the largest area: (n, 2) x and y in pixels, at pixel centres; None under three points."""
    outlines, _ = cv2.findContours(
        decode_mask(mask).astype(np.uint8, order="C"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    if not outlines:
        return None
    largest: np.ndarray = max(outlines, key=cv2.contourArea).reshape(-1, 2)
    return largest + 0.5 if len(largest) >= 3 else None
