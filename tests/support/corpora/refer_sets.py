"""Small releases of the formats around REFER."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.mask import encode

from corpora.corpus import DATASET, HEIGHT, WIDTH, Box, Corpus, Truth

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


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    """Write a pickle and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
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


def write_mask(path: Path, box: Box) -> Path:
    """Write the mask of a whole box as a grey image of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(path)
    return path


def cris_entry(number: int, box: Box, *texts: str, image: int = 1, **fields: object) -> Row:
    """An entry of CRIS's lists, with a truncated box."""
    sentences = [{"idx": k, "sent_id": 10 * number + k, "sent": text} for k, text in enumerate(texts)]
    row = {"bbox": [int(side) for side in box], "cat": 3, "segment_id": number, "sentences": sentences}
    return {**row, "img_name": f"COCO_train2014_{image:012d}.jpg", "sentences_num": len(texts), **fields}


def write_cris(folder: Path, main: str = "val.json", masks: str = "masks") -> Path:
    """Two entries of one image and a flat box of another, whose mask is a line of one pixel."""
    line: Box = (20.0, 30.0, 60.0, 31.0)
    for number, box in enumerate((LEFT, RIGHT, line), start=1):
        write_mask(folder / masks / f"{number}.png", box)
    flat: Box = (20.0, 30.0, 60.0, 30.9)
    entries = [
        cris_entry(1, LEFT, "the left thing", "left"),
        cris_entry(2, RIGHT, "the right thing"),
        cris_entry(3, flat, "the edge", image=2),
        cris_entry(4, LEFT, "lost", image=2, sentences_num=2),
    ]
    return write_json(folder / main, entries)


def d_cube_rows() -> dict[str, dict[int, Row]]:
    """Two groups of two sentences; boxes and areas are arrays, as in the published pickles.

    Image 0 has two objects of sentence 1, one of them also of sentence 3, which is of the other group; image 1 has one
    of sentence 4; image 2 names an annotation that does not exist.
    """
    texts = {1: "a thing on a table", 2: "a thing without a lid", 3: "a blue thing", 4: "a thing that is not red"}
    objects = {7: (0, LEFT, [1]), 8: (0, RIGHT, [1, 3]), 9: (1, LEFT, [4])}
    sentences = {
        one: {"id": one, "anno_id": [], "group_id": [1], "is_negative": one % 2 == 0, "raw_sent": text}
        | {"raw_sent_zh": f"\u4e1c\u897f {one}"}
        for one, text in texts.items()
    }
    annotations = {
        number: {"id": number, "sent_id": sent_ids, "area": np.array([1], np.uint32), "iscrowd": 0, "image_id": image}
        | {"bbox": np.array([xywh(box)]), "segmentation": [_run_lengths(box)], "group_id": 1}
        for number, (image, box, sent_ids) in objects.items()
    }
    images = {
        number: {"id": number, "file_name": f"group/{number}.jpg", "height": HEIGHT, "width": WIDTH}
        | {"anno_id": anno_ids, "group_id": 2 if number == 1 else 1, "flickr_url": "", "license": ""}
        for number, anno_ids in {0: [7, 8], 1: [9], 2: [99]}.items()
    }
    groups = {
        number: {"id": number, "pos_sent_id": [], "inner_sent_id": inner, "outer_sent_id": [], "img_id": []}
        | {"scene": ["indoor"], "group_name": "things"}
        for number, inner in {1: [1, 2], 2: [3, 4]}.items()
    }
    return {"sentences": sentences, "annotations": annotations, "images": images, "groups": groups}


def _run_lengths(box: Box) -> Row:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 1
    return dict(encode(pixels))


def write_d_cube(folder: Path) -> Path:
    """The four pickles, in the protocol of Python 3.8 and later."""
    for name, rows in d_cube_rows().items():
        write_pickle(folder / f"{name}.pkl", rows, protocol=4)
    return folder / "sentences.pkl"


def write_vlm_r1(folder: Path) -> Path:
    """Boxes in `bbox_list`; `solution` has their far edges moved out by a pixel, except in row 2; row 3 has no box."""
    size = {"width": WIDTH, "height": HEIGHT, "dataset_name": "refcoco", "iscrowd": 0, "text_type": "caption"}
    rows = [
        {"id": 7, "image": "train2014/COCO_train2014_000000000001.jpg", "original_id": 11, "normal_caption": "left one"}
        | {"problem": "Find left one", "bbox_list": [LEFT], "solution": [5.0, 10.0, 36.0, 51.0]},
        {"id": 8, "image": "train2014/COCO_train2014_000000000001.jpg", "original_id": 12, "normal_caption": "right"}
        | {"bbox_list": [RIGHT], "normalized_solution": [605, 250, 900, 875]},
        {"id": 9, "image": "own/2.jpg", "normal_caption": "moved", "bbox_list": [LEFT], "solution": RIGHT},
        {"id": 10, "image": "own/2.jpg", "normal_caption": "no box", "bbox_list": [], "solution": LEFT},
    ]
    return write_json(folder / "refcoco_val.json", [{**size, **row} for row in rows])


REFER_SETS: dict[str, Corpus] = {
    "arefcoco": Corpus(
        write_arefcoco,
        num_expressions=4,
        families=frozenset({"coco"}),
        problems={"unknown_ref": 1},
        truth=Truth("tiny/1/0", "train", "It is Right", "coco:2", (RIGHT,), (None,)),
    ),
    "cris": Corpus(
        write_cris,
        num_expressions=4,
        families=frozenset({"coco"}),
        problems={"box_without_extent": 1, "broken_row": 1},
        truth=Truth("tiny/3/30", "val", "the edge", "coco:2", ((20.0, 30.0, 60.0, 31.0),), (40.0,)),
    ),
    "vlm_r1": Corpus(
        write_vlm_r1,
        num_expressions=3,
        families=frozenset({"coco", DATASET}),
        problems={"solution_differs_from_box": 1, "broken_row": 1},
        truth=Truth("tiny/7", "val", "left one", "coco:1", (LEFT,), (None,)),
    ),
    "d_cube": Corpus(
        write_d_cube,
        num_expressions=4,
        families=frozenset({DATASET}),
        problems={"image_without_truth": 1},
        truth=Truth(
            "tiny/0/1", "test", "a thing on a table", "tiny:group/0.jpg", (LEFT, RIGHT), (30.0 * 40, 30.0 * 50)
        ),
    ),
}
"""Row of the table of sources -> its corpus."""
