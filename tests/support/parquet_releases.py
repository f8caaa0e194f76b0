"""Tiny releases of the data sets in Parquet, with one-coloured images inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpora import HEIGHT, WIDTH, Box
from corpora.json_sets import text_mask
from image_files import png_bytes
from release import ExpectedExample, Release

LEFT: Box = (10.0, 20.0, 30.0, 60.0)
RIGHT: Box = (50.0, 20.0, 90.0, 60.0)
Rows = Sequence[Mapping[str, Any]]


def image(number: int = 0, path: str | None = None) -> dict[str, Any]:
    """An image as the library `datasets` stores it; each number has its colour."""
    return {"bytes": png_bytes((WIDTH, HEIGHT), (number, 0, 0)), "path": path}


def xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def polygon(box: Box) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def write_parquet(path: Path, rows: Rows, schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def _writer(files: Mapping[str, Rows]) -> Callable[[Path], None]:
    def write(raw: Path) -> None:
        for name, rows in files.items():
            write_parquet(raw / name, rows)

    return write


def lmms_row(number: int, box: Box, *answers: str, coco: int = 1) -> dict[str, Any]:
    """A row of lmms-lab's copies of RefCOCO."""
    return {
        "question_id": str(number), "image": image(), "question": "Describe it.", "answer": list(answers),
        "segmentation": polygon(box), "bbox": xywh(box), "iscrowd": 0,
        "file_name": f"COCO_train2014_{coco:012d}_{number}.jpg",
    }  # fmt: skip


def _lmms(name: str, folder: str) -> Release:
    files = {
        f"{folder}/data/val-00000-of-00001.parquet": [
            lmms_row(1, LEFT, "left cup", "cup on the left"),
            lmms_row(2, RIGHT, "right"),
        ],
        f"{folder}/data/test-00000-of-00001.parquet": [lmms_row(1, RIGHT, "right one", coco=2)],
    }
    return Release(
        _writer(files),
        expected=(
            ExpectedExample("val_mixed", f"{name}/1/1", "cup on the left", (LEFT,)),
            ExpectedExample("test", f"{name}/1/0", "right one", (RIGHT,)),
        ),
        sizes={"val_mixed": 3, "test": 1},
    )


def sentence(number: int, text: str) -> dict[str, Any]:
    return {"raw": text, "sent": text.lower(), "sent_id": number, "tokens": text.lower().split()}


def benchmark_ref(number: int, box: Box, *sentences: dict[str, Any]) -> dict[str, Any]:
    """One entry of `ref_list`."""
    annotation = {
        "area": 1.0, "bbox": xywh(box), "category_id": 1, "id": 10 + number, "image_id": 1, "iscrowd": 0,
        "segmentation": [polygon(box)],
    }  # fmt: skip
    ref = {
        "ann_id": 10 + number, "category_id": 1, "file_name": "COCO_train2014_000000000001_1.jpg", "image_id": 1,
        "ref_id": number, "sent_ids": [one["sent_id"] for one in sentences], "sentences": list(sentences),
        "split": "val",
    }  # fmt: skip
    return {"ann_info": annotation, "ref_info": ref}


_BENCHMARK = [
    {
        "ref_list": [
            benchmark_ref(1, LEFT, sentence(0, "Left"), sentence(1, "Left one")),
            benchmark_ref(2, RIGHT, sentence(2, "Right")),
        ],
        "image_info": {"file_name": "COCO_train2014_000000000001.jpg", "width": WIDTH, "height": HEIGHT, "id": 1},
        "image": image(),
    }
]
_CLEANED = [
    {
        "image": image(),
        "image_id": 1,
        "file_name": "COCO_train2014_000000000001.jpg",
        "samples": [
            {"sentences": ["left", "left one"], "mask": text_mask(LEFT)},
            {"sentences": ["right"], "mask": text_mask(RIGHT)},
        ],
    }
]


def _ref_l4_row(number: int, origin: str, split: str, file_name: str) -> dict[str, Any]:
    return {
        "id": number, "caption": f"a long expression {number}", "bbox": xywh(LEFT), "bbox_area": 800.0,
        "bbox_id": f"{origin}_{number}", "ori_category_id": "refcoco_1", "image_id": f"{origin}_7", "height": HEIGHT,
        "width": WIDTH, "file_name": file_name, "is_rewrite": 0, "split": split,
    }  # fmt: skip


def _ref_adv_row(number: int, distractors: int, *, negation: bool) -> dict[str, Any]:
    return {
        "row_idx": number, "image": image(number), "width": WIDTH, "height": HEIGHT, "file_name": f"{number}.jpg",
        "image_source": "openimages", "normal_caption": f"expression {number}", "solution": list(LEFT),
        "distractors": distractors, "human_authored": True, "use_negation": negation,
    }  # fmt: skip


def pbench_row(number: int, text: str, *boxes: Box) -> dict[str, Any]:
    """A row of PBench."""
    masks = [text_mask(box) for box in boxes]
    return {"image": image(), "expression": text, "masks": masks, "count": len(masks), "id": number}


def grounding_me_row(number: int, first: str, second: str, box: Sequence[float]) -> dict[str, Any]:
    """A row of GroundingME."""
    return {
        "id": number, "image": image(), "description": f"description {number}", "bbox": list(box), "height": HEIGHT,
        "width": WIDTH, "subtask_l1": first, "subtask_l2": second,
    }  # fmt: skip


PARQUET_RELEASES: dict[str, Release] = {
    "lmms_refcoco": _lmms("lmms_refcoco", "RefCOCO"),
    "lmms_refcoco_plus": _lmms("lmms_refcoco_plus", "RefCOCOplus"),
    "lmms_refcocog": _lmms("lmms_refcocog", "RefCOCOg"),
    "refcoco_benchmark": Release(
        _writer({"refcoco-benchmark/data/refcoco_unc_val-00000-of-00001.parquet": _BENCHMARK}),
        expected=(
            ExpectedExample("refcoco_unc_val", "refcoco_benchmark/1/1", "left one", (LEFT,)),
            ExpectedExample("refcoco_unc_val", "refcoco_benchmark/2/2", "right", (RIGHT,)),
        ),
        sizes={"refcoco_unc_val": 3},
    ),
    "refcoco_m": Release(
        _writer({"refcoco-m/data/validation-00000-of-00001.parquet": _CLEANED}),
        expected=(
            ExpectedExample("val", "refcoco_m/1/0/1", "left one", (LEFT,)),
            ExpectedExample("val", "refcoco_m/1/1/0", "right", (RIGHT,)),
        ),
        sizes={"val": 3},
    ),
    "ref_l4": Release(
        _writer(
            {
                "Ref-L4/ref-l4-val.parquet": [_ref_l4_row(1, "coco", "val", "COCO_train2014_000000000007.jpg")],
                "Ref-L4/ref-l4-test.parquet": [_ref_l4_row(2, "o365", "test", "objects365_v1_00000007.jpg")],
            }
        ),
        expected=(
            ExpectedExample("val", "ref_l4/1", "a long expression 1", (LEFT,), "coco"),
            ExpectedExample("test", "ref_l4/2", "a long expression 2", (LEFT,), "o365"),
        ),
        sizes={"val": 1, "test": 1},
    ),
    "ref_adv_s": Release(
        _writer(
            {
                "ref-adv-s/data/train-00000-of-00001.parquet": [
                    _ref_adv_row(1, 3, negation=False),
                    _ref_adv_row(2, 7, negation=True),
                ]
            }
        ),
        expected=(
            ExpectedExample("test", "ref_adv_s/1", "expression 1", (LEFT,), "distractors_2_to_3"),
            ExpectedExample("test", "ref_adv_s/2", "expression 2", (LEFT,), "distractors_7_or_more_negation"),
        ),
        sizes={"test": 2},
    ),
    "pbench": Release(
        _writer(
            {
                "PBench/data/level_0-00000-of-00001.parquet": [
                    pbench_row(1, "both cups", LEFT, RIGHT),
                ],
                "PBench/data/dense-00000-of-00001.parquet": [pbench_row(1, "the cup", RIGHT)],
            }
        ),
        expected=(
            ExpectedExample("level_0", "pbench/1", "both cups", (LEFT, RIGHT), "level_0"),
            ExpectedExample("dense", "pbench/1", "the cup", (RIGHT,), "dense"),
        ),
        sizes={"level_0": 1, "dense": 1},
    ),
    "groundingme": Release(
        _writer(
            {
                "GroundingME/data/test-00000-of-00001.parquet": [
                    grounding_me_row(1, "Spatial", "Counting", LEFT),
                    grounding_me_row(2, "Rejection", "Appearance", (0, 0, 0, 0)),
                ]
            }
        ),
        expected=(
            ExpectedExample("test", "groundingme/1", "description 1", (LEFT,), "spatial_counting"),
            ExpectedExample("test", "groundingme/2", "description 2", (), "rejection_appearance"),
        ),
        sizes={"test": 2},
    ),
}
