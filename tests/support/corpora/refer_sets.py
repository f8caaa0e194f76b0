"""Small releases of the formats around REFER."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from corpora.corpus import HEIGHT, WIDTH, Box, Corpus, Truth

LEFT: Box = (5.0, 10.0, 35.0, 50.0)
RIGHT: Box = (60.5, 20.0, 90.0, 70.0)
"""The objects 11 and 12 of image 1, and 21 and 22 of image 2."""
Row = dict[str, Any]


def xywh(box: Box) -> list[float]:
    """Left, top, width and height of a box."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_pickle(path: Path, content: object) -> Path:
    """Write a pickle and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def write_instances(path: Path, *, name: str = "COCO_train2014_{:012d}.jpg") -> Path:
    """Write the four objects, without masks."""
    boxes = {11: LEFT, 12: RIGHT, 21: LEFT, 22: RIGHT}
    annotations = [
        {"id": one, "image_id": one // 10, "category_id": 1, "iscrowd": 0, "bbox": xywh(box), "segmentation": []}
        for one, box in boxes.items()
    ]
    images = [{"id": one, "file_name": name.format(one), "width": WIDTH, "height": HEIGHT} for one in (1, 2)]
    categories = [{"id": 1, "name": "thing"}]
    return write_json(path, {"info": [], "images": images, "annotations": annotations, "categories": categories})


def sentence(number: int, text: str, **fields: object) -> Row:
    """A sentence of a ref."""
    return {"sent_id": number, "sent": text.lower(), "raw": text, "tokens": text.lower().split(), **fields}


def ref(number: int, ann_id: object, split: str, *sentences: Row, image: int = 1, **fields: object) -> Row:
    """A ref of a refs file."""
    row = {"ref_id": number, "ann_id": ann_id, "image_id": image, "split": split, "category_id": 1}
    return {**row, "sent_ids": [one["sent_id"] for one in sentences], "sentences": list(sentences), **fields}


def write_arefcoco(folder: Path, main: str = "arefcoco.json") -> Path:
    """Entities that name refs of two data sets; both have a ref 5, of different objects, and one ref is unknown."""
    write_pickle(folder / "refcoco" / "refs(unc).p", [ref(5, 11, "train", sentence(0, "left"))])
    write_pickle(folder / "refcocog" / "refs(umd).p", [ref(5, 22, "test", sentence(0, "right"), image=2)])
    for original in ("refcoco", "refcocog"):
        write_instances(folder / original / "instances.json")
    entities = [
        {"entity_id": 1, "split": "train", "ref_id": 5, "original_dataset": "refcocog", "descriptions": ["It is Right"]}
        | {"category_name": "thing", "bbox": xywh(RIGHT)},
        {"entity_id": 2, "split": "test", "ref_id": 5, "original_dataset": "refcoco", "descriptions": ["One", "Two"]},
        {"entity_id": 3, "split": "test", "ref_id": 6, "original_dataset": "refcoco", "descriptions": ["Lost"]},
        {"entity_id": 4, "split": "train", "ref_id": 5, "original_dataset": "refcoco", "descriptions": ["Left"]},
    ]
    return write_json(folder / main, {"annotations": entities})


REFER_SETS: dict[str, Corpus] = {
    "arefcoco": Corpus(
        write_arefcoco,
        num_expressions=4,
        families=frozenset({"coco"}),
        problems={"unknown_ref": 1},
        truth=Truth("tiny/1/0", "train", "It is Right", "coco:2", (RIGHT,), (None,)),
    ),
}
"""Row of the table of sources -> its corpus."""
