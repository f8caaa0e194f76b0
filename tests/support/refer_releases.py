"""Tiny releases of the data sets in the layouts of REFER and of MDETR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corpora import HEIGHT, WIDTH, Box
from corpora.refer_sets import (
    LEFT,
    RIGHT,
    Row,
    ref,
    sentence,
    write_arefcoco,
    write_cris,
    write_d_cube,
    write_instances,
    write_json,
    write_pickle,
    xywh,
)
from release import ExpectedExample, Release


def _write_robust(folder: str, author: str) -> Callable[[Path], None]:
    """R-RefCOCO: a sentence with `exist` false is about nothing in the image, whatever its ref's annotation."""

    def write(raw: Path) -> None:
        refs = [
            ref(1, 11, "train", sentence(0, "The left Thing"), sentence(1, "The blue thing", exist=False)),
            ref(2, 22, "val", sentence(2, "Right", exist=True), sentence(2, "Wrong", exist=False), image=2),
        ]
        write_pickle(raw / folder / f"refs({author}).p", refs)
        write_instances(raw / folder / "instances.json")

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
        ref(1, [11, 12], "train", sentence(0, "Both Things"), source="many"),
        ref(2, 12, "train", sentence(1, "The right one"), source="one"),
        ref(3, [], "test", sentence(2, "A dog"), image=2, source="zero"),
        ref(4, [21], "test", sentence(3, "A cat"), image=2, source="zero"),
        ref(5, [], "test", sentence(4, "A bird"), image=2, source="one"),
    ]
    write_pickle(raw / "ref-zom" / "Ref-ZOM(final).p", refs)
    write_instances(raw / "ref-zom" / "instances.json", name="COCO_val2014_{:012d}.jpg")


def _write_arefcoco(raw: Path) -> None:
    write_arefcoco(raw, "arefcoco/arefcoco.json")


def _write_refcocom(raw: Path) -> None:
    for split in ("val", "testA", "testB"):
        write_cris(raw, f"anns/refcocom/{split}.json", "masks/refcocom")


def _write_d_cube(raw: Path) -> None:
    write_d_cube(raw / "d3_pkl")


def _mdetr_image(number: int, caption: str, file_name: str, **fields: object) -> Row:
    return {"id": number, "caption": caption, "file_name": file_name, "width": WIDTH, "height": HEIGHT, **fields}


def _mdetr_box(number: int, image: int, box: Box, **fields: object) -> Row:
    row = {"id": number, "image_id": image, "bbox": xywh(box), "area": 1.0, "category_id": 1, "iscrowd": 0}
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
        write_json(raw / "RefDrone" / f"RefDrone_{split}_mdetr.json", file)


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
        write_json(raw / "harlequin" / "annotations" / f"instances_{split}.json", file)


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
        write_json(raw / "FineCops-Ref" / f"{name}_coco_format.json", file)


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
    "arefcoco": Release(
        _write_arefcoco,
        expected=(
            ExpectedExample("train", "arefcoco/1/0", "It is Right", (RIGHT,)),
            ExpectedExample("test", "arefcoco/2/0", "One", (LEFT,)),
            ExpectedExample("test", "arefcoco/2/1", "Two", (LEFT,)),
        ),
        sizes={"train": 2, "test": 2},
        problems={"unknown_ref": 1},
    ),
    "refcocom": Release(
        _write_refcocom,
        expected=(
            ExpectedExample("val", "refcocom/1/11", "left", (LEFT,)),
            ExpectedExample("testB", "refcocom/2/20", "the right thing", ((60.0, 20.0, 90.0, 70.0),)),
            ExpectedExample("testA", "refcocom/3/30", "the edge", ((20.0, 30.0, 60.0, 31.0),)),
        ),
        sizes={"val": 4, "testA": 4, "testB": 4},
        problems={"box_without_extent": 3, "broken_row": 3},
    ),
    "d_cube": Release(
        _write_d_cube,
        expected=(
            ExpectedExample("test", "d_cube/0/1", "a thing on a table", (LEFT, RIGHT), "presence"),
            ExpectedExample("test", "d_cube/0/2", "a thing without a lid", (), "absence"),
            ExpectedExample("test", "d_cube/1/3", "a blue thing", (), "presence"),
            ExpectedExample("test", "d_cube/1/4", "a thing that is not red", (LEFT,), "absence"),
        ),
        sizes={"test": 4},
        problems={"image_without_truth": 1},
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
