"""Tiny releases of the data sets in the layouts of REFER and of MDETR."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora import HEIGHT, WIDTH, Box
from release import ExpectedExample, Release

LEFT: Box = (5.0, 10.0, 35.0, 50.0)
RIGHT: Box = (60.5, 20.0, 90.0, 70.0)
"""The objects 11 and 12 of image 1, and 21 and 22 of image 2."""
_Row = dict[str, Any]


def _xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_instances(path: Path, *, name: str = "COCO_train2014_{:012d}.jpg") -> None:
    boxes = {11: LEFT, 12: RIGHT, 21: LEFT, 22: RIGHT}
    annotations = [
        {"id": one, "image_id": one // 10, "category_id": 1, "iscrowd": 0, "bbox": _xywh(box), "segmentation": []}
        for one, box in boxes.items()
    ]
    images = [{"id": one, "file_name": name.format(one), "width": WIDTH, "height": HEIGHT} for one in (1, 2)]
    categories = [{"id": 1, "name": "thing"}]
    _write_json(path, {"info": [], "images": images, "annotations": annotations, "categories": categories})


def _write_refs(path: Path, refs: Sequence[_Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(list(refs), protocol=2))


def _sentence(number: int, text: str, **fields: object) -> _Row:
    return {"sent_id": number, "sent": text.lower(), "raw": text, "tokens": text.lower().split(), **fields}


def _ref(number: int, ann_id: object, split: str, *sentences: _Row, image: int = 1, **fields: object) -> _Row:
    ref = {"ref_id": number, "ann_id": ann_id, "image_id": image, "split": split, "category_id": 1}
    return {**ref, "sent_ids": [one["sent_id"] for one in sentences], "sentences": list(sentences), **fields}


def _write_robust(folder: str, author: str) -> Any:
    """R-RefCOCO: a sentence with `exist` false is about nothing in the image, whatever its ref's annotation."""

    def write(raw: Path) -> None:
        refs = [
            _ref(1, 11, "train", _sentence(0, "The left Thing"), _sentence(1, "The blue thing", exist=False)),
            _ref(2, 22, "val", _sentence(2, "Right", exist=True), _sentence(2, "Wrong", exist=False), image=2),
        ]
        _write_refs(raw / folder / f"refs({author}).p", refs)
        _write_instances(raw / folder / "instances.json")

    return write


def _robust(name: str, folder: str, author: str) -> Release:
    return Release(
        _write_robust(folder, author),
        expected=(
            ExpectedExample("train", f"{name}/1/0", "The left Thing", (LEFT,)),
            ExpectedExample("train", f"{name}/1/1", "The blue thing", ()),
            ExpectedExample("val", f"{name}/2/2", "Right", (RIGHT,)),
            ExpectedExample("val", f"{name}/2/2-1", "Wrong", ()),
        ),
        sizes={"train": 2, "val": 2},
    )


def _write_ref_zom(raw: Path) -> None:
    """`source` decides: "zero" is no target, with an empty list or with annotations; others need annotations."""
    refs = [
        _ref(1, [11, 12], "train", _sentence(0, "Both Things"), source="many"),
        _ref(2, 12, "train", _sentence(1, "The right one"), source="one"),
        _ref(3, [], "test", _sentence(2, "A dog"), image=2, source="zero"),
        _ref(4, [21], "test", _sentence(3, "A cat"), image=2, source="zero"),
        _ref(5, [], "test", _sentence(4, "A bird"), image=2, source="one"),
    ]
    _write_refs(raw / "ref-zom" / "Ref-ZOM(final).p", refs)
    _write_instances(raw / "ref-zom" / "instances.json", name="COCO_val2014_{:012d}.jpg")


def _mdetr_image(number: int, caption: str, file_name: str, **fields: object) -> _Row:
    return {"id": number, "caption": caption, "file_name": file_name, "width": WIDTH, "height": HEIGHT, **fields}


def _mdetr_box(number: int, image: int, box: Box, **fields: object) -> _Row:
    row = {"id": number, "image_id": image, "bbox": _xywh(box), "area": 1.0, "category_id": 1, "iscrowd": 0}
    return {**row, **fields}


def _write_refdrone(raw: Path) -> None:
    """String categories; an `empty` annotation with `iscrowd` -1 is no target."""
    name = {"original_id": -1, "dataset_name": "RefDrone", "tokens_negative": [[0, 8]]}
    real = {"original_id": -1, "category_id": "3", "empty": False, "tokens_positive": [[0, 8]]}
    none = {"original_id": -1, "category_id": -1, "empty": True, "iscrowd": -1, "area": -1, "tokens_positive": []}
    images = [
        _mdetr_image(1, "two cars on the left", "0000001_02999_d_0000005.jpg", **name),
        _mdetr_image(2, "the red bus", "0000001_02999_d_0000005.jpg", **name),
    ]
    boxes = [
        _mdetr_box(1, 1, LEFT, **real),
        _mdetr_box(2, 1, RIGHT, **real),
        _mdetr_box(3, 2, (0.0, 0.0, 0.0, 0.0), **none),
    ]
    for split in ("train", "val", "test"):
        file = {"info": [], "licenses": [], "images": images, "annotations": boxes, "categories": []}
        _write_json(raw / "RefDrone" / f"RefDrone_{split}_mdetr.json", file)


def _write_harlequin(raw: Path) -> None:
    """Several phrases of a caption, each with its own box; there is no `dataset_name`."""
    caption = "a red cup beside a blue plate"
    image = _mdetr_image(1, caption, "0001.jpg", original_img_id=7)
    boxes = [
        _mdetr_box(number, 1, box, tokens_positive=[span], phrase_ids=[number], query=caption[slice(*span)])
        | {"sentence": caption, "image_w": WIDTH, "image_h": HEIGHT}
        for number, (box, span) in enumerate([(LEFT, [0, 9]), (RIGHT, [17, 29])])
    ]
    for split in ("train", "val", "test"):
        file = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}
        _write_json(raw / "harlequin" / "annotations" / f"instances_{split}.json", file)


def _write_finecops(raw: Path) -> None:
    """A `negative_type` is no target, although the annotation keeps the box of the positive that it comes from."""
    texts = ["the cup left of the plate", "the cup right of the plate"]
    images = [_mdetr_image(number, text, "2370799.jpg", dataset_name="gqa") for number, text in enumerate(texts)]
    positive = {"level": 2, "tuple_type": "1_hop", "objects_id": [7], "tokens_positive": [[0, 7]]}
    negative = {**positive, "negative_type": "relation", "negative_level": 1, "positive_id": 0, "negative_cate": "text"}
    boxes = [_mdetr_box(0, 0, LEFT, **positive), _mdetr_box(1, 1, LEFT, **negative)]
    for name, size in (
        ("expression_all_train_set", 2),
        ("expression_pos_final_val_set", 1),
        ("test_expression_pos", 1),
    ):
        file = {"images": images[:size], "annotations": boxes[:size], "categories": []}
        _write_json(raw / "FineCops-Ref" / f"{name}_coco_format.json", file)


REFER_RELEASES: dict[str, Release] = {
    "rrefcoco": _robust("rrefcoco", "rrefcoco", "unc"),
    "rrefcoco_plus": _robust("rrefcoco_plus", "rrefcoco+", "unc"),
    "rrefcocog": _robust("rrefcocog", "rrefcocog", "umd"),
    "ref_zom": Release(
        _write_ref_zom,
        expected=(
            ExpectedExample("train", "ref_zom/1/0", "Both Things", (LEFT, RIGHT)),
            ExpectedExample("train", "ref_zom/2/1", "The right one", (RIGHT,)),
            ExpectedExample("test", "ref_zom/3/2", "A dog", ()),
            ExpectedExample("test", "ref_zom/4/3", "A cat", ()),
        ),
        sizes={"train": 2, "test": 2},
        problems={"no_target_with_annotations": 1, "broken_ref": 1},
    ),
    "refdrone": Release(
        _write_refdrone,
        expected=(
            ExpectedExample("test", "refdrone/1", "two cars on the left", (LEFT, RIGHT)),
            ExpectedExample("test", "refdrone/2", "the red bus", ()),
        ),
        sizes={"train": 2, "val": 2, "test": 2},
    ),
    "harlequin": Release(
        _write_harlequin,
        expected=(
            ExpectedExample("val", "harlequin/1/0-9", "a red cup", (LEFT,)),
            ExpectedExample("val", "harlequin/1/17-29", "a blue plate", (RIGHT,)),
        ),
        sizes={"train": 2, "val": 2, "test": 2},
    ),
    "finecops_ref": Release(
        _write_finecops,
        expected=(
            ExpectedExample("train", "finecops_ref/0", "the cup left of the plate", (LEFT,), "level_2"),
            ExpectedExample("train", "finecops_ref/1", "the cup right of the plate", (), "level_2"),
        ),
        sizes={"train": 2, "val": 1, "test": 1},
    ),
}
"""Name of the data set -> its release."""
