"""Scoring on genuine annotations and photographs, which are not shipped: REFCLI_REALDATA names them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from refcli.cli import app
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.store.read import Store
from refcli.geometry.masks import decode_mask, encode_mask

REAL = Path(os.environ.get("REFCLI_REALDATA") or "nowhere").resolve()
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="REFCLI_REALDATA is not set")
MOVE = 12
"""Pixels to the right and down."""


@pytest.fixture
def refcli(monkeypatch, capsys):
    """Run the command line in this process; returns what it prints as JSON."""

    def run(*arguments: object) -> dict:
        monkeypatch.setattr(sys, "argv", ["refcli", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as left:
            app.run()
        captured = capsys.readouterr()
        assert not left.value.code, captured.err
        return json.loads(captured.out)

    return run


def folder(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"REFCLI_REALDATA has no {name}")
    return REAL / name


@pytest.fixture(params=["refs(template).json", "grefs(template).json", "joined_real"])
def store(request, refcli, tmp_path) -> Path:
    """One target per expression, several or none, or genuine expressions of four data sets."""
    if request.param == "joined_real":
        rows = [json.loads(line) for line in (folder("joined_real") / "refs.jsonl").read_text().splitlines()]
        file = tmp_path / "real_test.jsonl"
        lines = [
            {key: row[key] for key in ("id", "image", "expression", "width", "height")}
            | {"box_xywh": row["bbox_xywh"]}
            | ({"segmentation": row["segmentation"]} if row["segmentation"] else {})
            for row in rows
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        file = folder("template_refs") / request.param
    refcli("prepare-data", "--from", file, "--name", "real", "--out", tmp_path / "store", "--images", REAL)
    return tmp_path / "store"


def examples_of(store: Path) -> list[Example]:
    splits = [Store(store).split(name) for name in Store(store).names()]
    return [split[index] for split in splits for index in range(len(split))]


def moved(target: Target, by: int, height: int, width: int) -> Target:
    box = tuple(side + by for side in target.box_xyxy)
    if target.mask is None or not by:
        return replace(target, box_xyxy=box)
    bitmap = np.zeros((height, width), dtype=bool)
    bitmap[by:, by:] = decode_mask(target.mask)[: height - by, : width - by]
    return replace(target, box_xyxy=box, mask=encode_mask(bitmap))


def write_truth(examples: list[Example], path: Path, by: int = 0) -> Path:
    from refcli.answers.jsonl import answer_to_json

    with path.open("w") as file:
        for one in examples:
            targets = tuple(
                moved(Target(region.box_xyxy, 1.0, region.mask), by, one.height, one.width) for region in one.regions
            )
            answer = Answer(
                one.id, one.image, one.expression, one.width, one.height, targets, not targets, float(not targets), "t"
            )
            file.write(json.dumps(answer_to_json(answer)) + "\n")
    return path


def evaluate(refcli, store: Path, file: Path, *arguments: str) -> dict[str, dict[str, float]]:
    splits = [part for name in Store(store).names() for part in ("--split", name)]
    document = refcli("evaluate", "--data", store, *splits, "--predictions", file, *arguments)
    return {name: split["overall"] for name, split in document["splits"].items()}


def test_the_truth_scores_100_everywhere(store, refcli, tmp_path):
    examples = examples_of(store)
    for overall in evaluate(refcli, store, write_truth(examples, tmp_path / "truth.jsonl")).values():
        figures = {key: value for key, value in overall.items() if key not in ("count", "targeted")}
        assert figures.pop("box_miou", 1.0) == pytest.approx(1.0, abs=1e-3)  # a file holds boxes to 0.01 pixel
        imperfect = {key for key, value in figures.items() if value < 1 and not key.endswith("_union")}
        assert not imperfect


def test_moved_truth_scores_what_a_plain_loop_counts(store, refcli, tmp_path):
    examples = examples_of(store)
    measured = evaluate(refcli, store, write_truth(examples, tmp_path / "moved.jsonl", by=MOVE))
    for name, overall in measured.items():
        hits, ious = [], []
        for one in (one for one in examples if f"{one.dataset}:{one.split}" == name and one.regions):
            boxes = np.array([region.box_xyxy for region in one.regions])
            x1, y1, x2, y2 = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
            overlap = max(x2 - x1 - MOVE, 0) * max(y2 - y1 - MOVE, 0)
            hits.append(overlap / (2 * (x2 - x1) * (y2 - y1) - overlap) >= 0.5)
            if all(region.mask is not None for region in one.regions):
                rles = [{"size": list(region.mask.size), "counts": region.mask.counts} for region in one.regions]
                truth = coco.decode(coco.merge(rles)).astype(bool)
                drawn = np.zeros_like(truth)
                drawn[MOVE:, MOVE:] = truth[:-MOVE, :-MOVE]
                ious.append((truth & drawn).sum() / (truth | drawn).sum())
        assert overall.get("acc50") == (pytest.approx(np.mean(hits), abs=0.01) if hits else None)
        assert overall.get("mask_miou") == (pytest.approx(np.mean(ious)) if ious else None)


def test_base_size_random_weights_run_end_to_end(refcli, tmp_path):
    import torch

    from refcli.config.schema import HeadChoice, ModelSettings
    from refcli.grounder import Grounder
    from refcli.weights.directory import save_weights

    rows = [json.loads(line) for line in (folder("joined_real") / "refs.jsonl").read_text().splitlines()][::10]
    file = tmp_path / "real_test.jsonl"
    keys = ("id", "image", "expression", "width", "height")
    lines = [{key: row[key] for key in keys} | {"box_xywh": row["bbox_xywh"]} for row in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refcli("prepare-data", "--from", file, "--name", "real", "--out", tmp_path / "store", "--images", REAL)
    torch.manual_seed(0)
    settings = ModelSettings(head=HeadChoice(settings={"res": True}))
    save_weights(tmp_path / "base", Grounder.from_settings(settings), settings, meta={})
    document = refcli(
        "evaluate", "--data", tmp_path / "store", "--split", "real:test", "--weights", tmp_path / "base", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert document["splits"]["real:test"]["overall"]["count"] == len(rows)
    assert json.loads((tmp_path / "out/summary.json").read_text()) == document
