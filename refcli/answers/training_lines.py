"""Answers as training data (pseudo-labels): refcli's own lines, and ODVG."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refcli.answers.jsonl import mask_to_json
from refcli.answers.written import AnsweredImage, Written, by_image, usable
from refcli.contracts.prediction import Answer
from refcli.files import open_atomically

DATA_FILE, ODVG_FILE = "data.jsonl", "odvg.jsonl"


def write_data(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `data.jsonl`, a line per answer in the format that `refcli prepare-data` reads as `jsonl`.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets; an answer without such a target is left out, since a low score
            does not mean that there is no target.
    """
    written = Written([DATA_FILE])
    with open_atomically(out / DATA_FILE) as file:
        for answer in usable(answers, written, min_score=min_score):
            file.write(f"{json.dumps(data_line(answer))}\n".encode())
    return written


def data_line(answer: Answer) -> dict[str, Any]:
    """The record of one answer."""
    record: dict[str, Any] = {
        "image": answer.image,
        "expression": answer.expression,
        "width": answer.width,
        "height": answer.height,
    }
    if not answer.targets:
        return record | {"no_target": True}
    record["boxes"] = [[round(side, 2) for side in target.box_xyxy] for target in answer.targets]
    if any(target.mask is not None for target in answer.targets):
        record["segmentation"] = [mask_to_json(target.mask) if target.mask else None for target in answer.targets]
    return record


def write_odvg(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `odvg.jsonl`, a line per image: a caption of all expressions, and a region per target.

    ODVG has no masks and no "no target": answers without a target add nothing.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written([ODVG_FILE])
    images = by_image(usable(answers, written, min_score=min_score))
    with open_atomically(out / ODVG_FILE) as file:
        for image in images:
            if any(True for _ in image.found):
                file.write(f"{json.dumps(odvg_line(image))}\n".encode())
    return written


def odvg_line(image: AnsweredImage) -> dict[str, Any]:
    """The record of one image; a phrase's regions are the boxes of its answer."""
    phrases: dict[str, list[list[float]]] = {}
    for answer, target in image.found:
        phrases.setdefault(answer.expression, []).append([round(side, 2) for side in target.box_xyxy])
    regions = [{"phrase": name, "bbox": boxes[0] if len(boxes) == 1 else boxes} for name, boxes in phrases.items()]
    return {
        "filename": image.image,
        "height": image.height,
        "width": image.width,
        "grounding": {"caption": ". ".join(phrases), "regions": regions},
    }
