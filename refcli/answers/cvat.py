"""Answers as CVAT's "images 1.1" XML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from refcli.answers.written import AnsweredImages, Written, by_image, categories, usable, xml_text
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.files import open_atomically
from refcli.geometry.masks import decode_mask, mask_box

FILE = "annotations.xml"


def write_cvat(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `annotations.xml`: a box per target, a mask per target that has one; the label is the expression.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written([FILE])
    images = by_image(usable(answers, written, min_score=min_score))
    with open_atomically(out / FILE) as file:
        file.writelines(cvat_parts(images))
    return written


def cvat_parts(images: AnsweredImages) -> Iterator[bytes]:
    """The document in parts, an image each; ids of images count from 0."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in categories(images):
        label = SubElement(labels, "label")
        SubElement(label, "name").text = xml_text(name)
        attribute = SubElement(SubElement(label, "attributes"), "attribute")
        for key, value in {"name": "score", "mutable": "False", "input_type": "text", "default_value": ""}.items():
            SubElement(attribute, key).text = value
    indent(root)
    end = b"\n</annotations>"
    yield tostring(root, encoding="utf-8", xml_declaration=True).removesuffix(end)
    for number, image in enumerate(images):
        sides = {"width": str(image.width), "height": str(image.height)}
        element = Element("image", {"id": str(number), "name": xml_text(image.image), **sides})
        for group, (answer, target) in enumerate(image.found, 1):
            _add_shapes(element, group, answer, target)
        indent(element, level=1)
        yield b"\n  " + tostring(element, encoding="utf-8")
    yield end


def _add_shapes(parent: Element, group: int, answer: Answer, target: Target) -> None:
    shared = {
        "label": xml_text(answer.expression),
        "source": "auto",
        "occluded": "0",
        "z_order": "0",
        "group_id": str(group),
    }
    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{side:.2f}" for side in target.box_xyxy), strict=True))
    shapes = [SubElement(parent, "box", shared | corners)]
    if target.mask is not None and (place := cvat_mask(target.mask)) is not None:
        shapes.append(SubElement(parent, "mask", shared | place))
    for shape in shapes:
        SubElement(shape, "attribute", {"name": "score"}).text = f"{target.score:.5f}"


def cvat_mask(mask: RLE) -> dict[str, str] | None:
    """The attributes of a mask: its extent, and run lengths within it, row by row, background first; None if empty."""
    left, top, right, bottom = (int(side) for side in mask_box(mask))
    if right <= left:
        return None
    pixels = decode_mask(mask)[top:bottom, left:right].ravel(order="C")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff(np.concatenate(([0], edges, [pixels.size]))).tolist()
    counts = [0, *runs] if pixels[0] else runs
    return {
        "rle": ", ".join(map(str, counts)),
        "left": str(left),
        "top": str(top),
        "width": str(right - left),
        "height": str(bottom - top),
    }
