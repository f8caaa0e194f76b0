"""`refcli convert-answers` writes usable answers, lists the others, and changes no existing file."""

from __future__ import annotations

import json

import pytest

from refcli.answers.table import WRITERS
from refcli.cli.convert_answers import command
from refcli.errors import ConfigError, DataError, UsageError
from refcli.recipes.convert_answers import convert_answers

LINE = {
    "schema": "refcli.prediction/1",
    "id": "1",
    "image": "a.jpg",
    "expression": "the cup",
    "width": 20,
    "height": 10,
    "targets": [{"box": [1, 2, 5, 6], "score": 0.5, "mask": None, "box_source": "head"}],
    "no_target": False,
    "no_target_score": None,
    "weights": "demo",
    "error": None,
}


@pytest.fixture
def predictions(tmp_path):
    def write(*records):
        path = tmp_path / "predictions.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return path

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_written_from_a_prediction_file(name, predictions, tmp_path, capsys):
    command(predictions(LINE), name, tmp_path / "out")

    assert "(answers: 1, targets: 1, files: " in capsys.readouterr().err
    assert any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_broken_lines_and_failed_answers_are_listed_and_the_rest_is_written(predictions, tmp_path):
    failed = LINE | {"id": "2", "error": "it is no image", "targets": []}
    done = convert_answers(predictions(LINE, {"schema": "x"}, failed), "coco", tmp_path / "out")

    assert done.exit_code == 3
    assert done.written.failed == ["2"]
    assert done.problems["not a prediction"].count == 1
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"]) == 1


def test_a_folder_that_is_not_empty_is_refused(predictions, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")

    with pytest.raises(UsageError, match="not empty"):
        convert_answers(predictions(LINE), "coco", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_files_without_predictions_and_unknown_formats_are_refused_before_writing(predictions, tmp_path):
    with pytest.raises(DataError, match="no line of the file is a prediction"):
        convert_answers(predictions({"a": 1}), "coco", tmp_path / "out")
    with pytest.raises(ConfigError, match="answer format"):
        convert_answers(predictions(LINE), "cocoa", tmp_path / "out")
    with pytest.raises(UsageError, match="outlines"):
        convert_answers(predictions(LINE), "coco", tmp_path / "out", outlines=True)
    with pytest.raises(UsageError, match="Label Studio"):
        convert_answers(predictions(LINE), "coco", tmp_path / "out", image_url="http://files/")
    assert not (tmp_path / "out").exists()
