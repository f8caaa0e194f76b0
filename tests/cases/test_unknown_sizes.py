"""Stores without image sizes are scored, trained on, inspected and audited: boxes need no image size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refcli.config.schema import TowerSettings
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.data.store.read import Store
from refcli.data.training.dataset import GroundingDataset
from refcli.errors import DataError
from refcli.evaluation.sample_score import score_sample
from refcli.geometry.masks import encode_mask

SIZES = {"no sizes": {}, "-1": {"width": -1, "height": -1}, "null": {"width": None, "height": None}}
BOX = [10, 20, 60, 70]


def record(name: str, found: list | None, **size: int | None) -> dict:
    """A line of a prediction file."""
    targets = [{"box": box, "score": 0.9, "mask": None} for box in found or []]
    return {
        "schema": "refcli.prediction/1", "id": f"mine/{name}", "image": "a.jpg", "expression": "x", **size,
        "targets": targets, "no_target": not targets, "no_target_score": None, "weights": "x", "error": None,
    }  # fmt: skip


@pytest.fixture
def prepare(refcli, tmp_path):
    """A store of three expressions about one image, whose size is known or not."""

    def make(size: dict) -> Path:
        lines = [
            {"image": "a.jpg", "expression": "the red cup", "box": BOX, "id": "r1", **size},
            {"image": "a.jpg", "expression": "both", "boxes": [BOX, [70, 20, 90, 70]], "id": "r2", **size},
            {"image": "a.jpg", "expression": "the fork", "no_target": True, "id": "r3", **size},
        ]
        (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
        code, _, err = refcli(
            "prepare-data", "--from", tmp_path / "val.jsonl", "--name", "mine", "--out", tmp_path / "store"
        )
        assert code == 0, err
        return tmp_path / "store"

    return make


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("of_store", SIZES)
def test_boxes_are_scored_without_the_image_size(refcli, prepare, tmp_path, of_store):
    store = prepare(SIZES[of_store])
    for of_answers in ({"width": 100, "height": 80}, *SIZES.values(), {"width": 0, "height": 0}):
        records = [
            record("r1", [BOX], **of_answers), record("r2", [BOX, [70, 20, 90, 70]], **of_answers),
            record("r3", None, **of_answers),
        ]  # fmt: skip
        path = write(tmp_path / "p.jsonl", records)
        asked = ("evaluate", "--predictions", path, "--data", store, "--split", "mine:val", "--convention", "oneref384")
        code, out, _ = refcli(*asked, "--json")
        assert code == 0
        document = json.loads(out)
        for name in ("acc50", "acc50_gated", "box_miou", "n_acc", "t_acc"):
            assert document["metrics"][f"mine/val/{name}"] == 1
        is_known = of_answers.get("width") == 100
        assert ("mine/val/oneref384/acc50" in document["metrics"]) == is_known
        split = document["splits"]["mine:val"]
        assert split["unknown_sizes"] == (0 if is_known else 2)
        assert bool(split["breakdown"]["box_size"]) == is_known


def test_a_table_counts_unknown_sizes_and_hints_how_to_get_them(refcli, prepare, tmp_path):
    path = write(tmp_path / "p.jsonl", [record("r1", [BOX]), record("r2", [BOX], width=100, height=80)])
    asked = ("evaluate", "--predictions", path, "--data", prepare({}), "--split", "mine:val", "--missing", "wrong")
    _, table, _ = refcli(*asked)
    assert "1 samples have images of unknown size" in table
    assert "--images FOLDER finds the sizes" in table


def test_a_wrong_size_of_a_known_image_is_still_reported(refcli, prepare, tmp_path):
    store = prepare({"width": 100, "height": 80})
    path = write(tmp_path / "p.jsonl", [record("r1", [BOX], width=101, height=80)])
    code, _, err = refcli("evaluate", "--predictions", path, "--data", store, "--split", "mine:val")
    assert code == 1
    assert "the image is 101 x 80, but 100 x 80 in the data" in err


def test_a_ground_truth_mask_gives_the_size_of_an_image():
    """Stores hold no such masks; other truths may."""
    bitmap = np.zeros((80, 100), dtype=bool)
    bitmap[20:70, 10:60] = True
    target = Target((10.0, 20.0, 60.0, 70.0), 0.9, encode_mask(bitmap))
    truth = Example("r1", "m", "val", "a.jpg", "m:a", 0, 0, "x", (Region(target.box_xyxy, target.mask),))
    answer = Answer("r1", "a.jpg", "x", 0, 0, (target,), False, None, "w")
    score = score_sample(truth, answer)
    assert (score.mask_iou, score.box_iou, score.box_share) == (1, 1, 2500 / 8000)
    turned = replace(target, mask=encode_mask(bitmap.T))
    with pytest.raises(DataError, match="a mask is 80 x 100, but the image 100 x 80"):
        score_sample(truth, replace(answer, targets=(turned,)))


@pytest.fixture
def with_image(prepare):
    """A store of unknown sizes that contains its image."""
    store = prepare({})
    Image.new("RGB", (100, 80), "red").save(store / "mine" / "a.jpg")
    return store


def test_a_model_is_scored_on_images_of_unknown_size_and_its_cases_are_drawn(refcli, with_image, tmp_path):
    asked = ("evaluate", "--data", with_image, "--split", "mine:val", "--convention", "all")
    code, out, err = refcli(*asked, "--report", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["splits"]["mine:val"]["overall"]["count"] == 3
    assert (tmp_path / "out/report.html").read_text().count("<figure") > 6


@pytest.mark.parametrize("command", ["inspect", "audit", pytest.param("finetune", marks=pytest.mark.slow)])
def test_other_commands_accept_an_unknown_size(refcli, with_image, tmp_path, command):
    arguments = {
        "inspect": ("inspect-data", with_image, "--sample", "3", "--out", tmp_path / "drawn"),
        "audit": ("audit", with_image, "--check-images"),
        "finetune": (
            "finetune", "--preset", "synthetic_tiny", "--data", with_image, "--out", tmp_path / "run", "--set",
            "data.train=[mine:val]", "--set", "data.validation=[mine:val]", "--set", "train.steps=1",
            "--set", "data.workers=0",
        ),
    }  # fmt: skip
    code, _, err = refcli(*arguments[command])
    assert code == 0, err


TOWER = TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16)


def test_training_reads_the_size_of_the_image_and_clips_boxes_to_it(with_image):
    Image.new("RGB", (60, 60)).save(with_image / "mine" / "a.jpg")
    samples = GroundingDataset(Store(with_image), ["mine:val"], tower=TOWER, augment=None)
    assert samples[0, 0].box_cxcywh.tolist() == pytest.approx([35 / 60, 40 / 60, 50 / 60, 40 / 60])
    assert not samples[2, 0].exists


def test_training_names_the_box_that_does_not_fit_an_image_of_unknown_size(with_image):
    Image.new("RGB", (30, 15)).save(with_image / "mine" / "a.jpg")
    samples = GroundingDataset(Store(with_image), ["mine:val"], tower=TOWER, augment=None)
    with pytest.raises(DataError, match="does not fit into its image of 30 x 15") as caught:
        samples[0, 0]
    assert "mine/r1" in str(caught.value)
    assert "--images" in str(caught.value)


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_missing_images_give_a_hint(refcli, prepare, tmp_path, command):
    store = prepare({})
    arguments = {
        "evaluate": ("--split", "mine:val"),
        "finetune": (
            "--preset", "synthetic_tiny", "--out", tmp_path / "run", "--set", "data.train=[mine:val]", "--set",
            "data.validation=[mine:val]", "--set", "data.workers=0",
        ),
    }  # fmt: skip
    code, _, err = refcli(command, "--data", store, *arguments[command])
    assert code == 1
    assert "prepare the data again with --images FOLDER" in err
