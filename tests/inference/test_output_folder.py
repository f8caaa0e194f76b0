"""An output folder contains a drawing per answer, its masks and all lines, or a partial file of an interrupted run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refcli.answers.jsonl import answer_from_json
from refcli.contracts.prediction import Answer, Target
from refcli.errors import UsageError
from refcli.geometry.masks import encode_mask
from refcli.inference.output_folder import OutputFolder

MASK = np.zeros((40, 60), dtype=bool)
MASK[5:20, 10:30] = True
FOUND = Answer(
    "0",
    "../x/a.jpg",
    "the *Größte* / cup?",
    60,
    40,
    (Target((10, 5, 30, 20), 0.9, encode_mask(MASK)),),
    False,
    0.1,
    "w",
)
FAILED = Answer("1", "none.jpg", "", 0, 0, (), False, None, "w", "there is no such image")


def answers_in(path: Path) -> list[Answer]:
    return [answer_from_json(json.loads(line)) for line in path.read_text().splitlines()]


def test_drawings_masks_and_lines_are_written(tmp_path):
    with OutputFolder(tmp_path / "out") as folder:
        folder.add(FOUND, np.zeros((40, 60, 3), np.uint8))
        folder.add(FAILED, None)
    assert answers_in(tmp_path / "out/predictions.jsonl") == [FOUND, FAILED]
    drawings = sorted(path.name for path in (tmp_path / "out/overlays").iterdir())
    assert drawings == ["00000-a-the-grote-cup.png", "00001-none-x.png"]
    (mask,) = (tmp_path / "out/masks").iterdir()
    with Image.open(mask) as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), MASK)
    assert not list((tmp_path / "out").glob("*.partial"))


def test_an_interrupted_run_leaves_its_lines_under_another_name(tmp_path):
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path) as folder:
        folder.add(FOUND, np.zeros((40, 60, 3), np.uint8))
        raise KeyboardInterrupt
    assert not (tmp_path / "predictions.jsonl").exists()
    assert answers_in(tmp_path / "predictions.jsonl.partial") == [FOUND]


def test_force_removes_what_an_earlier_run_drew_and_other_files_stay(tmp_path):
    with OutputFolder(tmp_path) as folder:
        folder.add(FOUND, np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "masks" / "mine.png").touch()
    with OutputFolder(tmp_path, force=True) as folder:
        folder.add(FAILED, None)
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["00000-none-x.png"]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["mine.png"]


def test_large_drawings_are_jpegs(tmp_path):
    with OutputFolder(tmp_path) as folder:
        folder.add(FOUND, np.zeros((1500, 2000, 3), np.uint8))
    (drawing,) = (tmp_path / "overlays").iterdir()
    assert drawing.suffix == ".jpg"


def test_a_folder_that_cannot_be_created_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be created"):
        OutputFolder(tmp_path / "file")
