"""A small release of every format: at least three expressions, one flaw, and one example worked out by hand."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_files import png_bytes
from scipy.io import savemat

from corpora.corpus import DATASET, HEIGHT, WIDTH, Box, Corpus, Truth
from corpora.json_sets import JSON_SETS
from corpora.label_tools import LABEL_TOOLS
from corpora.refer_sets import REFER_SETS


def _coco_name(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


def _box_xywh(annotation_id: int) -> list[float]:
    """Objects 11, 12, 21, ... 42: the tens are the image, the left ones end with 1, the right ones with 2."""
    image, which = divmod(annotation_id, 10)
    return [2.0 * image, 5.0, 30.0, 20.0] if which == 1 else [50.5, 40.0, 20.0 + image, 30.0]


def _triangle(box_xywh: list[float]) -> list[float]:
    """The upper left half of a box, as a polygon."""
    x, y, width, height = box_xywh
    return [x, y, x + width, y, x, y + height]


def _instances() -> dict[str, Any]:
    annotations = [10 * image + which for image in range(1, 5) for which in (1, 2)]
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": _coco_name(number), "width": WIDTH, "height": HEIGHT} for number in range(1, 5)
        ],
        "annotations": [
            {"id": one, "image_id": one // 10, "category_id": 1, "iscrowd": 0}
            | {"bbox": _box_xywh(one), "segmentation": [_triangle(_box_xywh(one))]}
            for one in annotations
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def _ref(number: int, ann_id: int | list[int], image_id: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": 100 * number + k, "sent": text.lower(), "raw": text, "tokens": text.lower().split()}
        for k, text in enumerate(texts)
    ]
    return {"ref_id": number, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": sentences}


def _write_refer(folder: Path) -> Path:
    refs = [
        _ref(1, 11, 1, "train", "The left thing", "Left one"),
        _ref(2, 12, 1, "train", "The right thing"),
        _ref(3, 22, 2, "val", "Thing on the RIGHT"),
        _ref(4, 31, 3, "testA"),
        _ref(5, 42, 4, "testB", "Größtes"),
    ]
    (folder / "instances.json").write_text(json.dumps(_instances()))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return folder / "refs(unc).p"


def _write_grefcoco(folder: Path) -> Path:
    refs = [
        _ref(1, [11, 12], 1, "train", "Both things"),
        _ref(2, [-1], 1, "train", "The dog"),
        _ref(3, [21, 21], 2, "val", "The left thing", "Left"),
        _ref(4, 42, 4, "testA", "Right"),
    ]
    for ref in refs:
        ref["no_target"] = ref["ann_id"] == [-1]
    (folder / "instances.json").write_text(json.dumps(_instances()))
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    return folder / "grefs(unc).json"


def _write_referit(folder: Path) -> Path:
    boxes = {"1_1": [0, 0, 99, 39], "1_2": [10, 20, 49, 59], "2_1": [30, 0, 99, 79], "3_1": [5, 6, 7, 8]}
    queries = {
        "train": {"1_1": ["sky"], "1_2": ["the tree", "tree"]},
        "val": {"2_1": ["grass"]},
        "test": {"3_1": ["655"], "3_2": ["an undrawn region"]},
    }
    (folder / "referit_bbox.json").write_text(json.dumps(boxes))
    (folder / "referit_imsize.json").write_text(json.dumps({f"{image}.jpg": [WIDTH, HEIGHT] for image in (1, 2, 3)}))
    for split, regions in queries.items():
        (folder / f"referit_query_{split}.json").write_text(json.dumps(regions))
        (folder / f"referit_{split}_imlist.txt").write_text("".join(f"{image}\n" for image in (1, 2, 3)))
    (folder / "mask").mkdir()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for region, (left, top, right, bottom) in boxes.items():
        in_box = (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
        is_object = in_box & ((rows - top) * (right - left) >= (columns - left) * (bottom - top))
        savemat(folder / "mask" / f"{region}.mat", {"segimg_t": np.where(is_object, 0, 7).astype(np.uint8)})
    return folder / "referit_bbox.json"


def _write_flickr(folder: Path) -> Path:
    captions = {
        "11": "[/EN#1/people Two men] hold [/EN#2/other a cup] .\n[/EN#1/people Men] enjoy [/EN#0/notvisual it] .\n",
        "12": "[/EN#7/animals A dog] sleeps .\n",
    }
    boxes = {"11": [("1", 1, 1, 40, 80), ("1", 51, 11, 100, 80), ("2", 42, 30, 49, 39)], "12": [("7", 2, 3, 4, 5)]}
    with zipfile.ZipFile(folder / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for image, caption in captions.items():
            objects = "".join(
                f"<object><name>{chain}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
                f"<ymax>{y2}</ymax></bndbox></object>"
                for chain, x1, y1, x2, y2 in boxes[image]
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            archive.writestr(f"Sentences/{image}.txt", caption)
            archive.writestr(f"Annotations/{image}.xml", f"<annotation>{size}{objects}</annotation>")
    (folder / "train.txt").write_text("11\n")
    (folder / "test.txt").write_text("12\n")
    return folder / "annotations.zip"


def _write_pth(folder: Path) -> Path:
    annotations = {11: "left thing", 12: "right thing", 22: "the other thing", 41: "a moved thing"}
    rows = [
        (_coco_name(one // 10), f"{one}.pth", _box_xywh(one), text, [("r1", ["thing"])])
        for one, text in annotations.items()
    ]
    rows[3][2][0] += 1
    content = io.BytesIO()
    pickle.dump(rows, content, protocol=2)
    with zipfile.ZipFile(folder / "refcoco_val.pth", "w") as archive:
        archive.writestr("archive/data.pkl", content.getvalue())
        archive.writestr("archive/version", "3\n")
    (folder / "instances.json").write_text(json.dumps(_instances()))
    return folder / "refcoco_val.pth"


def _write_coco(folder: Path) -> Path:
    targets = {1: [11], 2: [12], 3: [22], 4: []}
    texts = {1: "the left thing", 2: "the right thing", 3: "it is right", 4: "an undrawn thing"}
    size = {"width": WIDTH, "height": HEIGHT, "dataset_name": "refcoco"}
    rows = [
        {"id": number, "caption": texts[number], "file_name": _coco_name(image), "original_id": image} | size
        for number, image in {1: 1, 2: 1, 3: 2, 4: 3}.items()
    ]
    annotations = [
        {"id": one, "original_id": one, "image_id": number, "category_id": 1, "iscrowd": 0}
        | {"bbox": _box_xywh(one), "segmentation": [_triangle(_box_xywh(one))]}
        | {"tokens_positive": [[0, len(texts[number])]]}
        for number, ones in targets.items()
        for one in ones
    ]
    file = {"info": [], "licenses": [], "images": rows, "annotations": annotations, "categories": []}
    (folder / "finetune_refcoco_val.json").write_text(json.dumps(file))
    return folder / "finetune_refcoco_val.json"


def _write_odvg(folder: Path) -> Path:
    size = {"height": HEIGHT, "width": WIDTH}
    first = [{"bbox": [5, 6, 30, 40], "phrase": ["a cat", "it"]}, {"bbox": [50.5, 6, 70, 40], "phrase": "A cat"}]
    second = [{"bbox": [[0, 0, 10, 10], [20, 20, 100, 80]], "phrase": "two dogs"}]
    broken = [{"bbox": [1, 2, 3], "phrase": "x"}]
    lines = [
        {"filename": _coco_name(1), "grounding": {"caption": "a cat sees a cat", "regions": first}} | size,
        {"filename": "own/a.jpg", "grounding": {"caption": "two dogs", "regions": second}} | size,
        {"filename": "own/b.jpg", "grounding": {"caption": "x", "regions": broken}} | size,
    ]
    (folder / "grit_train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "grit_train.jsonl"


def _write_jsonl(folder: Path) -> Path:
    size = {"height": HEIGHT, "width": WIDTH}
    triangle = [_triangle([10.0, 20.0, 40.0, 30.0])]
    lines = [
        {"image": "a.jpg", "expression": "the red cup", "box": [10, 20, 50, 50], "segmentation": triangle} | size,
        {"image": _coco_name(3), "expressions": ["both", "the two"], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8.5]]} | size,
        {"image": "a.jpg", "expression": "the fork", "no_target": True} | size,
        {"image": "a.jpg", "expression": "a line that forgot its box"} | size,
    ]
    (folder / "mine_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "mine_test.jsonl"


def _write_parquet(folder: Path) -> Path:
    def row(number: int, box_xywh: list[float], *answers: str) -> dict[str, Any]:
        image = {"bytes": png_bytes((WIDTH, HEIGHT)), "path": None}
        name = f"COCO_train2014_{number:012d}_1.jpg"
        return {"question_id": str(number), "image": image, "question": "?", "answer": list(answers)} | {
            "bbox": box_xywh, "segmentation": _triangle([10.0, 20.0, 40.0, 30.0]), "file_name": name
        }  # fmt: skip

    rows = [
        row(1, [10.0, 20.0, 40.0, 30.0], "the red cup", "cup"),
        row(2, [10.0, 20.0, 40.0, 30.0], "another cup"),
        row(4, [10.0, 20.0, 40.0, 30.0], "a third cup"),
        row(3, [10.0, 20.0, 40.0], "a row whose box has three numbers"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return folder / "test-00000-of-00001.parquet"


LEFT_OF_1: Box = (2.0, 5.0, 32.0, 25.0)
RIGHT_OF_1: Box = (50.5, 40.0, 71.5, 70.0)
RIGHT_OF_2: Box = (50.5, 40.0, 72.5, 70.0)

CORPORA: dict[str, Corpus] = {
    "refer": Corpus(
        _write_refer,
        num_expressions=5,
        families=frozenset({"coco"}),
        problems={"ref_without_sentences": 1},
        truth=Truth("tiny/3/300", "val", "thing on the right", "coco:2", (RIGHT_OF_2,), (22 * 30 / 2,)),
    ),
    "grefcoco": Corpus(
        _write_grefcoco,
        num_expressions=5,
        families=frozenset({"coco"}),
        problems={"repeated_annotation": 1},
        truth=Truth(
            "tiny/1/100", "train", "Both things", "coco:1", (LEFT_OF_1, RIGHT_OF_1), (30 * 20 / 2, 21 * 30 / 2)
        ),
    ),
    "referit": Corpus(
        _write_referit,
        num_expressions=5,
        families=frozenset({"saiapr"}),
        problems={"region_without_box": 1},
        truth=Truth("tiny/1_2/1", "train", "tree", "saiapr:1", ((10.0, 20.0, 50.0, 60.0),), (sum(range(1, 41)),)),
    ),
    "flickr": Corpus(
        _write_flickr,
        num_expressions=4,
        families=frozenset({"flickr30k"}),
        problems={"phrase_without_box_chain_0": 1},
        truth=Truth(
            "tiny/11/0/0",
            "train",
            "Two men",
            "flickr30k:11",
            ((0.0, 0.0, 40.0, 80.0), (50.0, 10.0, 100.0, 80.0)),
            (None, None),
        ),
    ),
    "pth": Corpus(
        _write_pth,
        num_expressions=4,
        families=frozenset({"coco"}),
        problems={"box_differs_from_instances": 1},
        truth=Truth("tiny/2", "val", "the other thing", "coco:2", (RIGHT_OF_2,), (22 * 30 / 2,)),
    ),
    "coco": Corpus(
        _write_coco,
        num_expressions=3,
        families=frozenset({"coco"}),
        problems={"caption_without_box": 1},
        truth=Truth("tiny/2", "val", "the right thing", "coco:1", (RIGHT_OF_1,), (21 * 30 / 2,)),
    ),
    "odvg": Corpus(
        _write_odvg,
        num_expressions=3,
        families=frozenset({"coco", DATASET}),
        problems={"broken_line": 1},
        truth=Truth(
            "tiny/1/0",
            "train",
            "a cat",
            "coco:1",
            ((5.0, 6.0, 30.0, 40.0), (50.5, 6.0, 70.0, 40.0)),
            (None, None),
        ),
    ),
    "jsonl": Corpus(
        _write_jsonl,
        num_expressions=4,
        families=frozenset({"coco", DATASET}),
        problems={"broken_line": 1},
        truth=Truth("tiny/test/1", "test", "the red cup", "tiny:a.jpg", ((10.0, 20.0, 50.0, 50.0),), (40 * 30 / 2,)),
    ),
    "parquet": Corpus(
        _write_parquet,
        num_expressions=4,
        families=frozenset({"coco"}),
        problems={"broken_row": 1},
        truth=Truth("tiny/1/0", "test", "the red cup", "coco:1", ((10.0, 20.0, 50.0, 50.0),), (40 * 30 / 2,)),
    ),
    **JSON_SETS,
    **LABEL_TOOLS,
    **REFER_SETS,
}
"""Row of the table of sources -> its corpus."""
