"""The generated page of formats: every row of every table is on it, and its commands run on small files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from corpora import CORPORA
from documentation import site_hooks

from refcli.answers import answer_line
from refcli.answers.formats import ANSWER_FORMATS, REFCLI
from refcli.answers.table import WRITERS
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.data.sources.table import SOURCES
from refcli.data.spec import list_specs
from refcli.data.store.write import write_manifest, write_split
from refcli.text.vlm_text import COORDINATES

_IMAGE = {"width": 100, "height": 80}
LABELS: dict[str, dict] = {
    "coco": {
        "images": [_IMAGE | {"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
        "categories": [{"id": 1, "name": "cat"}],
    },
    "odvg": _IMAGE
    | {"filename": "a.jpg", "detection": {"instances": [{"bbox": [10, 20, 40, 60], "label": 0, "category": "cat"}]}},
}
"""Labelled boxes in the formats whose corpus has expressions."""


@pytest.fixture(scope="module")
def page() -> str:
    return site_hooks().formats_page()


def commands(page: str, name: str, *, of_labels: bool = False) -> dict[str, list[str]]:
    """Format -> the words after `refcli` of its command, of all commands with this name.

    Args:
        page: the page.
        name: of the command.
        of_labels: those that write expressions about labelled boxes, instead of the others.
    """
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith(f"refcli {name} ")]
    option = {"prepare-data": "--format", "convert-answers": "--to", "evaluate": "--answers-format"}[name]
    chosen = [words for words in lines if option in words and ("--expressions" in words) == of_labels]
    return {words[words.index(option) + 1]: words[1:] for words in chosen}


def test_the_page_has_every_row_of_every_table(page):
    rows = set(re.findall(r"^\| \[?`([^`]+)`", page, re.M))

    assert rows == {*SOURCES, *list_specs(), *ANSWER_FORMATS, *WRITERS}
    assert commands(page, "prepare-data").keys() == SOURCES.keys()
    assert commands(page, "convert-answers").keys() == WRITERS.keys()
    assert commands(page, "evaluate").keys() == ANSWER_FORMATS.keys() - {REFCLI}
    assert all(f"`{space}`" in page for space in COORDINATES)


@pytest.mark.parametrize("name", SOURCES)
def test_the_command_of_a_format_reads_its_corpus(name, page, refcli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = commands(page, "prepare-data")[name]
    (tmp_path / "raw").mkdir()
    main_file = CORPORA[name].write(tmp_path / "raw")

    code, _, err = refcli(*(str(main_file) if word == "FILE" else word for word in words))

    assert code == 0, err
    assert list((tmp_path / "store" / "mine").glob("*.parquet"))


def test_the_commands_that_write_expressions_read_labelled_boxes(page, refcli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in commands(page, "prepare-data", of_labels=True).items():
        (tmp_path / name).mkdir()
        main_file = tmp_path / name / "labels.json"
        if name in LABELS:
            main_file.write_text(json.dumps(LABELS[name]))
        else:
            main_file = CORPORA[name].write(tmp_path / name)
        code, _, err = refcli(*(str(main_file) if word == "FILE" else word for word in words), "--force")
        assert code == 0 and "expressions about" in err, err


def test_the_commands_that_write_files_run(page, refcli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = Answer("1", "a.jpg", "the cup", 20, 10, (Target((1, 2, 5, 6), 0.5),), False, None, "demo")
    Path("predictions.jsonl").write_text(answer_line(answer))

    for name, words in commands(page, "convert-answers").items():
        code, _, err = refcli(*words)
        assert code == 0, err
        assert any(path.is_file() for path in (tmp_path / name).rglob("*"))


def test_the_commands_that_score_answers_read_the_examples(page, refcli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = [f"refcoco_unc/{own}" for own in ("3/7", "7", "7/3")]
    examples = [
        Example(one, "refcoco_unc", "val", "a.jpg", "a", 100, 80, "the cup", (Region((10, 20, 60, 60)),)) for one in ids
    ]
    write_manifest(tmp_path / "store", [write_split(tmp_path / "store", "refcoco_unc", "val", examples)])

    one_of_each_reader = {row.read: name for name, row in ANSWER_FORMATS.items() if name != REFCLI}
    for name in one_of_each_reader.values():
        words = commands(page, "evaluate")[name]
        Path("FILE").write_text(ANSWER_FORMATS[name].example)
        if name == "finecops-npy":
            record = [json.loads(ANSWER_FORMATS[name].example)]
            np.save("FILE.npy", np.array(record, dtype=object), allow_pickle=True)
            Path("FILE.npy").replace("FILE")
        code, out, err = refcli(*(word.replace("DATASET:SPLIT", "refcoco_unc:val") for word in words), "--json")
        document = json.loads(out)
        assert (code, document["problems"]) == (0 if ANSWER_FORMATS[name].lists_boxes else 3, {}), err
        assert document["splits"]["refcoco_unc:val"]["parse_failures"]["count"] == 0
