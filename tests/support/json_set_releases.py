"""Tiny releases of the data sets that are JSON lines, JSON lists or folders of JSON files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from corpora import Box
from corpora.json_sets import (
    LEFT,
    RIGHT,
    png,
    write_gseval,
    write_humanref,
    write_mmr,
    write_openref,
    write_reasonseg,
    write_sk_vg,
)
from release import ExpectedExample, Release


def _example(split: str, name: str, text: str, boxes: Sequence[Box], kind: str | None) -> ExpectedExample:
    return ExpectedExample(split, name, text, tuple(boxes), kind)


def _write_humanref(raw: Path) -> None:
    write_humanref(raw / "HumanRef" / "annotations.jsonl")


def _write_gseval(raw: Path) -> None:
    write_gseval(raw / "GroundingSuite-Eval.jsonl")


def _write_openref(raw: Path) -> None:
    for split in ("train", "val"):
        write_openref(raw / "openref" / f"{split}.json")


def _write_reasonseg(raw: Path) -> None:
    for split in ("train", "val", "test"):
        write_reasonseg(raw / "ReasonSeg" / split)


def _write_sk_vg(raw: Path) -> None:
    for split in ("train", "val", "test"):
        write_sk_vg(raw / "SK-VG" / "annotations" / f"{split}.json")


MMR_SPLITS = ("train", "val", "test_mixed", "test_obj_only", "test_part_only")


def _write_mmr(raw: Path) -> None:
    for split in MMR_SPLITS:
        write_mmr(raw / "MMR" / f"MMR_{split}.json")


def _write_humanref_cot(raw: Path) -> None:
    image = f"0\t{base64.b64encode(png('red')).decode()}\n"
    boxes = [[10, 20, 20, 40], [50, 20, 40, 40]]
    lines = [{"everyone": [0, 1]}, {"the man on the left": [0]}, {"a dog": []}, {"the fourth person": [3]}]
    (raw / "humanref_cot.images.tsv").write_text(image)
    (raw / "humanref_cot.annotations.tsv").write_text(
        "".join(f"0\t{json.dumps({'gt_boxes': boxes, 'region_map': line, 'think': ''})}\n" for line in lines)
    )


JSON_SET_RELEASES: dict[str, Release] = {
    "gseval": Release(
        _write_gseval,
        expected=(
            _example("test", "gseval/267", "the thing on the left", [LEFT], "class_4"),
            _example("test", "gseval/268", "the right thing", [RIGHT], "class_1"),
        ),
        sizes={"test": 3},
        problems={"broken_line": 1},
    ),
    "humanref": Release(
        _write_humanref,
        expected=(
            _example("test", "humanref/0", "everyone in red", [LEFT, RIGHT], "attribute"),
            _example("test", "humanref/1", "the singer", [LEFT], "celebrity"),
            _example("test", "humanref/2", "the man with an umbrella", [], "rejection"),
        ),
        sizes={"test": 4},
        problems={"broken_line": 1},
    ),
    "openref": Release(
        _write_openref,
        expected=(
            _example("train", "openref/1/positive", "the cups", [LEFT, RIGHT], "multi"),
            _example("train", "openref/1/negative", "the forks", [], "multi_negative"),
            _example("val", "openref/2/positive", "the left cup", [LEFT], "single"),
            _example("val", "openref/3/positive", "a cup of gold", [], "none"),
        ),
        sizes={"train": 5, "val": 5},
        problems={"broken_row": 2},
    ),
    "reasonseg": Release(
        _write_reasonseg,
        expected=(
            _example("train", "reasonseg/a/0", "the café’s table", [(20.0, 20.0, 61.0, 61.0)], "phrase"),
            _example("test", "reasonseg/b/0", "What is used to cut the bread?", [(40, 40, 45, 45)], "sentence"),
        ),
        sizes={"train": 4, "val": 4, "test": 4},
        problems={"broken_file": 3},
    ),
    "sk_vg": Release(
        _write_sk_vg,
        expected=(_example("val", "sk_vg/1", "her cup", [LEFT], None),),
        sizes={"train": 3, "val": 3, "test": 3},
        problems={"broken_row": 3},
    ),
    "mmr": Release(
        _write_mmr,
        expected=(
            _example("test_part_only", "mmr/1/0", "What can be held?", [LEFT, RIGHT], None),
            _example("test_mixed", "mmr/1/1", "Where is it warm?", [RIGHT], None),
        ),
        sizes=dict.fromkeys(MMR_SPLITS, 3),
        problems={"question_without_answer": 5},
    ),
    "humanref_cot": Release(
        _write_humanref_cot,
        expected=(
            _example("train", "humanref_cot/1/0", "everyone", [LEFT, RIGHT], None),
            _example("train", "humanref_cot/3/0", "a dog", [], None),
        ),
        sizes={"train": 3},
        problems={"broken_line": 1},
    ),
}
"""Name of the data set -> its release."""
