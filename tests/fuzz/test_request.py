"""Any line of a request stream gets answers, each of them a line of valid JSON."""

from __future__ import annotations

import io
import json
import sys

import pytest
from harness import NUM_INPUTS, fuzz, mutated_lines
from PIL import Image

from refcli.answers.jsonl import answer_from_json, answer_line
from refcli.cli.predict import table_line
from refcli.inference.output_folder import OutputFolder
from refcli.inference.predictor import Predictor
from refcli.inference.requests import parse_request_lines, read_request_file

RECORDS = (
    {"image": "a.png", "expression": "the red circle"},
    {"image": "a.png", "expressions": ["the red circle", "it"], "id": "7"},
    {"image": "none.png", "expression": "x", "id": 8, "other": [1, {"a": None}]},
    {"image": "\ud83d.png", "expression": "half \ud83d", "id": "\udc00"},
    {"image": "a\x00.png", "expression": "\x00\x1b[2J\u2028", "id": 1e308},
    {"image": "data:image/png;base64,AAAA", "expression": "x" * 3000},
    {"image": "a" * 300, "expression": ""},
    {"image": ".", "expression": "x"},
)


@pytest.fixture(scope="module")
def predictor(random_weights):
    return Predictor(random_weights, device="cpu", batch_size=4)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("a.png")


def check(content: bytes, answers: list) -> None:
    """Every line that is not blank has an answer, and every answer is a line that any program can read."""
    for answer in answers:
        line = answer_line(answer)
        assert line.isprintable()
        record = json.loads(line.encode("utf-8"))
        assert (record["id"], record["image"]) == (answer.id, answer.image)
        answer_from_json(record)
        assert table_line(answer).replace("\n", "").isprintable()
    assert len(answers) >= sum(bool(line.strip()) for line in content.split(b"\n"))


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_line_is_answered(predictor, num_inputs):
    def answer(content: bytes) -> None:
        requests = parse_request_lines(io.BytesIO(content), "<stdin>", None, ["the red circle"])
        check(content, list(predictor.predict_many(requests)))

    fuzz(mutated_lines(RECORDS), answer, num_inputs)


@pytest.mark.parametrize("num_inputs", [25, pytest.param(2_000, marks=pytest.mark.slow)])
def test_answers_to_any_lines_are_written_and_can_be_resumed(predictor, tmp_path, num_inputs):
    runs = iter(range(sys.maxsize))

    def write(content: bytes) -> None:
        (tmp_path / "r.txt").write_bytes(content)
        out = tmp_path / str(next(runs))
        requests = list(read_request_file(str(tmp_path / "r.txt"), ["x"]))
        with OutputFolder(out) as folder:
            for _, answer, drawable in predictor.answer_requests(requests, keep_images=True):
                folder.add(answer, drawable)
        with OutputFolder(out, resume=True) as folder:
            folder.begin({})
            assert not list(folder.unanswered(requests))
        with OutputFolder(out, force=True) as folder:
            folder.begin({})
        assert sorted(path.name for path in out.iterdir()) == [
            "manifest.jsonl",
            "masks",
            "overlays",
            "predictions.jsonl",
        ]

    fuzz(mutated_lines(RECORDS), write, num_inputs)
