"""Views of an answer for notebooks: masks as numpy, a drawing, HTML, and `supervision.Detections`."""

from __future__ import annotations

from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refcli.contracts.prediction import Answer
from refcli.drawing.colours import OVERLAY_COLOURS
from refcli.drawing.encoding import encode_png
from refcli.drawing.overlays import draw_answer, verdict
from refcli.errors import DataError, RefcliError, UsageError
from refcli.geometry.boxes import is_finite
from refcli.geometry.masks import decode_mask
from refcli.inference.image_sources import ImageSource, open_source

SVG_WIDTH = 320
"""Width of the sketch, in CSS pixels."""


def answer_masks(answer: Answer) -> np.ndarray:
    """See `Answer.masks`."""
    masks = [decode_mask(target.mask) for target in answer.targets if target.mask is not None]
    if len(masks) < len(answer.targets):
        raise UsageError(
            "a target has no mask", where=answer.id, hint="the model predicts boxes only; see Target.box_xyxy"
        )
    return np.stack(masks) if masks else np.zeros((0, answer.height, answer.width), dtype=np.bool_)


def answer_drawing(answer: Answer, image: ImageSource | None) -> Image.Image:
    """See `Answer.draw`."""
    return draw_answer(np.asarray(_opened(answer, image)), answer)


def _opened(answer: Answer, image: ImageSource | None) -> Image.Image:
    if image is None and not Path(answer.image).is_file():
        raise UsageError("the answer has no image file", where=answer.image, hint="give the image: answer.draw(image)")
    opened = open_source(answer.image if image is None else image)
    stated = answer.width, answer.height
    if all(stated) and stated != (opened.width, opened.height):
        raise DataError(
            f"the image is {opened.width} x {opened.height}, the answer is about one of {stated[0]} x {stated[1]}",
            where=answer.image,
            hint="give the image that was asked about: answer.draw(image)",
        )
    return opened.image


def answer_png(answer: Answer) -> bytes | None:
    """The drawing of an answer as a PNG file; None if there is no file of its image."""
    return encode_png(answer_drawing(answer, None)) if _has_image(answer) else None


def _has_image(answer: Answer) -> bool:
    try:
        _opened(answer, None)
    except (RefcliError, OSError, ValueError):
        return False
    return True


def answer_html(answer: Answer) -> str | None:
    """A table of the targets with a sketch of their boxes; None if there is a drawing, which front ends would hide."""
    if _has_image(answer):
        return None
    head = f"<b><bdi>{escape(answer.expression)}</bdi></b>: {verdict(answer)[0]}, <bdi>{escape(answer.image)}</bdi>"
    if answer.error is not None:
        return f"<div>{head}<br><bdi>{escape(answer.error)}</bdi></div>"
    rows = [
        f"<tr><td>{target.score:.3f}</td>{''.join(f'<td>{side:.1f}</td>' for side in target.box_xyxy)}</tr>"
        for target in answer.targets
    ]
    titles = "".join(f"<th>{title}</th>" for title in ("score", "x1", "y1", "x2", "y2"))
    table = f"<table><tr>{titles}</tr>{''.join(rows)}</table>" if rows else ""
    return f"<div>{head}{table}{_sketch(answer)}</div>"


def _sketch(answer: Answer) -> str:
    """The boxes in a frame with the proportions of the image."""
    if not (answer.width and answer.height):
        return ""
    rectangles = []
    for number, target in enumerate(answer.targets):
        if is_finite(target.box_xyxy):
            x1, y1, x2, y2 = target.box_xyxy
            place = f'x="{x1:.2f}" y="{y1:.2f}" width="{max(x2 - x1, 0):.2f}" height="{max(y2 - y1, 0):.2f}"'
            colour = OVERLAY_COLOURS[number % len(OVERLAY_COLOURS)]
            rectangles.append(f'<rect {place} stroke="rgb{colour}" vector-effect="non-scaling-stroke"/>')
    frame = '<rect width="100%" height="100%" stroke="grey"/>'
    size = f'viewBox="0 0 {answer.width} {answer.height}" width="{SVG_WIDTH}"'
    return f'<svg {size} fill="none" stroke-width="2">{frame}{"".join(rectangles)}</svg>'


def answer_detections(answer: Answer) -> Any:  # noqa: ANN401 - supervision is optional
    """See `Answer.to_supervision`."""
    try:
        supervision = import_module("supervision")
    except ImportError as error:
        raise UsageError("the package supervision is not installed", hint="pip install supervision") from error
    if not answer.targets:
        return supervision.Detections.empty()
    has_masks = all(target.mask is not None for target in answer.targets)
    return supervision.Detections(
        xyxy=np.array([target.box_xyxy for target in answer.targets], dtype=np.float32),
        mask=answer_masks(answer) if has_masks else None,
        confidence=np.array([target.score for target in answer.targets], dtype=np.float32),
        class_id=np.zeros(len(answer.targets), dtype=int),
        data={"class_name": np.array([answer.expression] * len(answer.targets))},
    )
