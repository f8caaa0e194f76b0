"""The packaged model, as a user meets it: offline, from the command line, right most of the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from refcli.data.sources.synthetic import SyntheticSettings, render_scene
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.weights.layout import MODEL_FILE
from refcli.weights.locate import BUILTIN_PATH

pytestmark = pytest.mark.skipif(not (BUILTIN_PATH / MODEL_FILE).is_file(), reason="the packaged model is not there")

UNSEEN_SEED = 987_654
"""No training set was generated from this seed."""
LEAST_ACCURACY = 0.91
LEAST_DEMO_SHARE = 0.8
LEAST_MASK_MIOU = 0.8
LEAST_NO_TARGET_ACCURACY = 0.8
DEMO_SECONDS = 20
"""Limit on processor time, which a busy machine does not lengthen."""
NUM_MIRRORED = 8
NEAR_SHARE = 0.1
"""Centres of the same object differ by less than this share of the image's width."""


def refcli(*arguments: object, stdin: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refcli", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_the_demo_runs_offline_quickly_and_is_mostly_right(tmp_path):
    before = os.times()
    done = refcli("demo", "--out", tmp_path / "demo")
    after = os.times()
    assert done.returncode == 0, done.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < DEMO_SECONDS
    right, _, total, _ = done.stdout.splitlines()[-1].split()
    assert int(right) >= LEAST_DEMO_SHARE * int(total)
    with Image.open(tmp_path / "demo/contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_evaluate_measures_the_packaged_model_above_its_floor_on_scenes_it_never_saw(tmp_path):
    write_synthetic(tmp_path / "store", size=40, seed=UNSEEN_SEED, splits=["test"])
    done = refcli(
        "evaluate", "--data", tmp_path / "store", "--split", "synthetic:test", "--json", "--out", tmp_path / "out",
        "--fail-under", f"acc50={LEAST_ACCURACY}", "--fail-under", f"mask_miou={LEAST_MASK_MIOU}",
        "--fail-under", f"n_acc={LEAST_NO_TARGET_ACCURACY}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/summary.json").read_text())


def test_the_output_of_predict_agrees_with_the_metrics_of_evaluate(tmp_path):
    """Score the printed lines by hand, with COCO's own tools, and compare with `evaluate`."""
    write_synthetic(tmp_path / "store", size=12, seed=UNSEEN_SEED + 1, splits=["test"])
    from refcli.data.store.read import Store

    split = Store(tmp_path / "store").split("synthetic:test")
    examples = [split[index] for index in range(len(split))]
    lines = [
        json.dumps({"id": example.id, "image": str(split.image_path(example)), "expression": example.expression})
        for example in examples
    ]
    predicted = refcli("predict", "-", stdin="\n".join(lines))
    assert predicted.returncode == 0, predicted.stderr
    answers = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [example.id for example in examples]
    hits, mask_ious, right_none = [], [], []
    for example, answer in zip(examples, answers, strict=True):
        if not example.regions:
            right_none.append(answer["no_target"])
            continue
        if answer["no_target"]:
            hits.append(False)
            continue
        (found,) = answer["targets"]
        boxes = np.array([region.box_xyxy for region in example.regions])
        truth = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        xywh = [[box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in (truth, np.array(found["box"]))]
        hits.append(coco.iou([xywh[0]], [xywh[1]], [0])[0, 0] >= 0.5)
        union = coco.merge(
            [{"size": list(region.mask.size), "counts": region.mask.counts} for region in example.regions]
        )
        mask_ious.append(coco.iou([union], [found["mask"]], [0])[0, 0])
    measured = refcli("evaluate", "--data", tmp_path / "store", "--split", "synthetic:test", "--json")
    figures = json.loads(measured.stdout)["splits"]["synthetic:test"]["overall"]
    assert figures["count"] == len(examples)
    assert figures["acc50_gated"] == pytest.approx(np.mean(hits))
    assert figures["t_acc"] == pytest.approx(len(mask_ious) / len(hits))
    assert figures["giou"] == pytest.approx((sum(mask_ious) + sum(right_none)) / len(examples), abs=1e-6)


def test_answers_move_with_the_objects_when_scenes_are_mirrored(tmp_path):
    """Left and right change places, in words and in pixels."""
    scenes = [render_scene(SyntheticSettings(seed=UNSEEN_SEED), "test", index).image for index in range(NUM_MIRRORED)]
    lines = []
    for number, pixels in enumerate(scenes):
        for name, image in ((f"{number}-plain.png", pixels), (f"{number}-mirrored.png", pixels[:, ::-1])):
            Image.fromarray(image).save(tmp_path / name)
        for side, other in (("leftmost", "rightmost"), ("rightmost", "leftmost")):
            lines.append({"image": f"{number}-plain.png", "expression": f"the {side} object"})
            lines.append({"image": f"{number}-mirrored.png", "expression": f"the {other} object"})
    done = refcli("predict", "-", stdin="\n".join(map(json.dumps, lines)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    agreeing = [same_object(one, other) for one, other in zip(answers[::2], answers[1::2], strict=True)]
    assert np.mean(agreeing) >= LEAST_ACCURACY


def same_object(plain: dict, mirrored: dict) -> bool:
    """Both found something, and at mirrored places."""
    if plain["no_target"] or mirrored["no_target"]:
        return False
    left, right = (answer["targets"][0]["box"] for answer in (plain, mirrored))
    centre, reflected = (left[0] + left[2]) / 2, plain["width"] - (right[0] + right[2]) / 2
    return abs(centre - reflected) < NEAR_SHARE * plain["width"]
