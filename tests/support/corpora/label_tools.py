"""Small exports of labelling tools: labelled boxes, polygons and masks of images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from image_files import write_image
from PIL import Image
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


def write_yolo(folder: Path, data: dict[str, Any], labels: dict[str, str]) -> Path:
    """A `data.yaml`, an image for every label file, and the label files by their path without suffix."""
    for name, text in labels.items():
        write_image(folder / "images" / f"{name}.jpg", (WIDTH, HEIGHT))
        file = folder / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder / "data.yaml"


def yolo_box(category: int, box: Box) -> str:
    left, top, right, bottom = box
    middle = (left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT
    return " ".join(map(str, (category, *middle, (right - left) / WIDTH, (bottom - top) / HEIGHT))) + "\n"


def yolo_polygon(category: int, *points: tuple[float, float]) -> str:
    return " ".join([str(category), *(f"{x / WIDTH} {y / HEIGHT}" for x, y in points)]) + "\n"


def _write_yolo(folder: Path) -> Path:
    triangle = yolo_polygon(1, (10, 20), (50, 20), (10, 60))
    data = {"path": ".", "train": "images/train", "val": ["images/val"], "names": {0: "cup", 1: "the plate"}, "nc": 2}
    labels = {
        "train/a": yolo_box(0, LEFT) + triangle + yolo_box(0, RIGHT),
        "train/b": "",
        "val/c": yolo_box(0, RIGHT) + yolo_box(0, RIGHT),
    }
    return write_yolo(folder, data, labels)


def cvat_box(box: Box, label: str, **fields: str) -> str:
    """A box of CVAT's XML."""
    attributes = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, box), strict=True)) | fields
    return f'<box label="{label}" occluded="0" {_written(attributes)}><attribute name="colour">red</attribute></box>'


def cvat_mask(box: Box, label: str, **fields: str) -> str:
    """A mask of CVAT's XML that covers a whole box but its first pixel."""
    left, top, right, bottom = map(int, box)
    wide, tall = right - left, bottom - top
    place = {"left": left, "top": top, "width": wide, "height": tall} | fields
    return f'<mask label="{label}" rle="1, {wide * tall - 1}" {_written(place)}></mask>'


def _written(attributes: Mapping[str, object]) -> str:
    return " ".join(f'{key}="{value}"' for key, value in attributes.items())


def write_cvat(path: Path, images: Sequence[tuple[str, str]]) -> Path:
    """A file with images: attributes and shapes of each."""
    parts = (
        f'<image id="{number}" name="{number}.jpg" width="{WIDTH}" height="{HEIGHT}" {attributes}>{shapes}</image>'
        for number, (attributes, shapes) in enumerate(images)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta/>'
    path.write_text(head + "".join(parts) + "</annotations>")
    return path


def _write_cvat(folder: Path) -> Path:
    pair = cvat_box(LEFT, "cup", group_id="3") + cvat_mask(LEFT, "cup", group_id="3")
    polygon = '<polygon label="the plate" points="10,20;50,20;10,60"></polygon>'
    ellipse = '<ellipse label="a fork" cx="1" cy="1" rx="1" ry="1"></ellipse>'
    images = [("", pair + polygon), ('subset="Validation"', cvat_box(RIGHT, "cup") + ellipse), ("", "")]
    return write_cvat(folder / "annotations.xml", images)


def voc_object(box: Box, name: str, more: str = "") -> str:
    """An object of Pascal VOC, by its first and last pixels."""
    left, top, right, bottom = map(int, box)
    sides = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
    written = "".join(f"<{side}>{number}</{side}>" for side, number in sides.items())
    return f"<object><name>{name}</name>{more}<bndbox>{written}</bndbox></object>"


def write_voc(folder: Path, objects: Mapping[str, str]) -> Path:
    """The folder `Annotations` with a file per image."""
    (folder / "Annotations").mkdir(parents=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    for name, text in objects.items():
        content = f"<annotation><filename>{name}.jpg</filename>{size}{text}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(content)
    return folder / "Annotations"


def _write_voc(folder: Path) -> Path:
    objects = {
        "a": voc_object(LEFT, "cup") + voc_object(RIGHT, "cup", "<difficult>1</difficult>") + voc_object(LEFT, "plate"),
        "b": voc_object(RIGHT, "cup"),
        "c": voc_object(RIGHT, "cup", "<angle>0.5</angle>"),
    }
    return write_voc(folder, objects)


def labelme_shape(label: str, kind: str, *points: tuple[float, float], **fields: Any) -> dict[str, Any]:
    """A shape of labelme."""
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **fields}


def labelme_mask(box: Box, label: str, **fields: Any) -> dict[str, Any]:
    """A mask of labelme that covers a whole box but its first pixel."""
    left, top, right, bottom = map(int, box)
    pixels = np.full((bottom - top, right - left), 255, dtype=np.uint8)
    pixels[0, 0] = 0
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    png = base64.b64encode(content.getvalue()).decode()
    return labelme_shape(label, "mask", (left, top), (right - 1, bottom - 1), mask=png, **fields)


def write_labelme(folder: Path, files: Mapping[str, Sequence[dict[str, Any]]]) -> Path:
    folder.mkdir()
    for name, shapes in files.items():
        size = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
        document = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"../photos/{name}.jpg", **size}
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def _write_labelme(folder: Path) -> Path:
    corners = (LEFT[2], LEFT[3]), (LEFT[0], LEFT[1])
    pair = labelme_shape("cup", "rectangle", *corners, group_id=1), labelme_mask(LEFT, "cup", group_id=1)
    triangle = labelme_shape("the plate", "polygon", (10, 20), (50, 20), (10, 60))
    files = {
        "a": [*pair, triangle],
        "b": [labelme_shape("cup", "rectangle", *corners), labelme_shape("fork", "circle", (9, 9), (9, 5))],
    }
    return write_labelme(folder / "val", files)


LABEL_TOOLS: dict[str, Corpus] = {
    "label_studio": Corpus(
        _write_label_studio,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"task_without_annotation": 1},
        truth=Truth("tiny/7/0", "val", "cup", "tiny:photos/7.jpg", (LEFT, RIGHT), (20 * 40, 40 * 40)),
    ),
    "yolo": Corpus(
        _write_yolo,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"repeated_object": 1},
        truth=Truth(
            "tiny/images/train/a.jpg/1",
            "train",
            "the plate",
            "tiny:images/train/a.jpg",
            ((10.0, 20.0, 50.0, 60.0),),
            (40 * 40 / 2,),
        ),
    ),
    "cvat": Corpus(
        _write_cvat,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"broken_shape": 1, "target_of_broken_object": 1, "unused_key": 1},
        truth=Truth("tiny/0/0", "train", "cup", "tiny:0.jpg", (LEFT,), (20 * 40 - 1,)),
    ),
    "voc": Corpus(
        _write_voc,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"rotated_box": 1, "target_of_broken_object": 1, "unused_key": 1},
        truth=Truth("tiny/a/0", "train", "cup", "tiny:a.jpg", (LEFT, RIGHT), (None, None)),
    ),
    "labelme": Corpus(
        _write_labelme,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"broken_shape": 1, "target_of_broken_object": 1},
        truth=Truth("tiny/a/0", "val", "cup", "tiny:photos/a.jpg", (LEFT,), (20 * 40 - 1,)),
    ),
}
"""Row of the table of sources -> its corpus."""
