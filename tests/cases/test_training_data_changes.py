"""A resumed run reports data that differs from that of its start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

SMALL = ["model.tower.dim=32", "model.tower.layers=1", "model.tower.ffn_dim=32", "model.tower.heads=2"]
SETTINGS = ["data.workers=0", "train.batch_size=2", "train.steps=2", "train.precision=fp32", "optim.warmup_steps=1"]


@pytest.fixture
def prepare(refcli, tmp_path):
    def call(*, count: int = 4, first: str = "a", split: str = "train", out: str = "store") -> Path:
        lines = tmp_path / f"{split}.jsonl"
        image = tmp_path / "image.png"
        if not image.exists():
            from PIL import Image

            Image.new("RGB", (64, 64)).save(image)
        with lines.open("w") as file:
            for number in range(count):
                line = {"image": image.name, "expression": f"{first} {number}", "box": [1, 2, 30, 40 + number]}
                file.write(json.dumps(line) + "\n")
        code, _, message = refcli(
            "prepare-data",
            "--from",
            lines,
            "--name",
            "mine",
            "--split",
            split,
            "--images",
            tmp_path,
            "--out",
            tmp_path / out,
            "--force",
        )
        assert code == 0, message
        return tmp_path / out

    return call


@pytest.fixture
def train(refcli, tmp_path):
    def call(*options: str):
        sets = [*SETTINGS, *SMALL, "data.train=[mine:train]", "data.validation=[mine:val]"]
        changes = [part for one in sets for part in ("--set", one)]
        return refcli(
            "finetune", "--preset", "synthetic_tiny", "--data", tmp_path / "store", "--device", "cpu",
            "--out", tmp_path / "run", *changes, *options,
        )  # fmt: skip

    return call


@pytest.fixture
def resume(refcli, tmp_path):
    return lambda *options: refcli(
        "finetune", "--out", tmp_path / "run", "--resume", "--set", "train.steps=3", *options
    )


@pytest.fixture
def begun(prepare, train):
    prepare()
    prepare(split="val")
    code, _, message = train()
    assert code == 0, message


def test_the_run_records_its_data(begun, tmp_path):
    facts = json.loads((tmp_path / "run" / "env.json").read_text())

    assert facts["data"].keys() == {"mine:train", "mine:val"}
    assert facts["data"]["mine:train"]["examples"] == 4
    assert len(facts["data"]["mine:train"]["sha256"][0]) == 64


def test_the_same_data_is_not_reported(begun, prepare, resume):
    prepare()
    code, _, message = resume()

    assert code == 0, message
    assert "changed" not in message.replace("train.steps changed", "")


def test_a_training_split_of_another_size_is_refused(begun, prepare, resume, tmp_path):
    prepare(count=6)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, _, message = resume()

    assert code == 2
    assert "mine:train had 4 examples, now 6" in message and "--init" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("val", 6), pytest.param("val", 4, marks=pytest.mark.slow)])
def test_other_contents_are_reported_and_logged(begun, prepare, resume, tmp_path, split, count):
    prepare(first="b", split=split, count=count)
    code, _, message = resume()

    assert code == 0, message
    assert f"the data has changed since the run began: mine:{split}" in " ".join(message.split())
    assert "the data has changed" in (tmp_path / "run" / "log.txt").read_text()


def test_another_store_of_other_contents_is_refused_like_a_changed_one(begun, prepare, resume, tmp_path):
    other = prepare(count=5, out="other")
    prepare(split="val", out="other")
    code, _, message = resume("--data", str(other))

    assert code == 2
    assert "had 4 examples, now 5" in message
    moved = shutil.copytree(tmp_path / "store", tmp_path / "moved")
    assert resume("--data", str(moved))[0] == 0


SLOW_DAMAGE = ["[]", '{"data": 3, "store": "x"}']


@pytest.mark.parametrize(
    "damage",
    ["{}", '{"data": {"mine:train": []}}', *(pytest.param(damage, marks=pytest.mark.slow) for damage in SLOW_DAMAGE)],
)
def test_a_run_without_recorded_data_continues(begun, resume, tmp_path, damage):
    (tmp_path / "run" / "env.json").write_text(damage)
    code, _, message = resume("--data", str(tmp_path / "store"))

    assert code == 0, message
