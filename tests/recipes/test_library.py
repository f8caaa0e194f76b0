"""The recipes as functions for Python programs."""

from __future__ import annotations

import pytest

import refcli
from refcli.config.load import load_finetune
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError, UsageError


def example(number: int, *boxes: tuple[float, float, float, float]) -> Example:
    regions = tuple(Region(box) for box in boxes)
    return Example(str(number), "mine", "test", "a.png", "a", 100, 80, "the cat", regions)


RIGHT, WRONG = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 70.0)


def test_boxes_are_scored_against_examples_by_id_in_any_order():
    examples = [example(1, RIGHT), example(2, RIGHT)]
    answers = [Answer.to(examples[1], [Target(WRONG, 0.9)]), Answer.to(examples[0], [Target(RIGHT, 0.9)])]

    metrics = refcli.score_predictions(answers, examples)

    assert metrics["acc50"] == 0.5
    assert metrics["box_miou"] == 0.5


def test_an_example_without_an_answer_counts_as_wrong():
    examples = [example(1, RIGHT), example(2, RIGHT)]

    assert refcli.score_predictions([Answer.to(examples[0], [Target(RIGHT, 0.9)])], examples)["acc50"] == 0.5


def test_an_answer_without_targets_is_no_target():
    nothing, something = example(1), example(2, RIGHT)

    metrics = refcli.score_predictions([Answer.to(nothing, []), Answer.to(something, [])], [nothing, something])

    assert Answer.to(nothing, []).no_target
    assert metrics["n_acc"] == 1
    assert metrics["t_acc"] == 0


def test_an_answer_to_no_example_or_given_twice_is_refused():
    one, other = example(1, RIGHT), example(2, RIGHT)
    answer = Answer.to(one, [Target(RIGHT, 0.9)])

    with pytest.raises(DataError, match="two answers have the same id"):
        refcli.score_predictions([answer, answer], [one])
    with pytest.raises(DataError, match="1 answers belong to no example"):
        refcli.score_predictions([answer], [other])


def test_generated_data_is_prepared_and_opened(tmp_path):
    store = refcli.prepare("synthetic", out=tmp_path / "store", settings={"size": 3, "seed": 5}, splits=["train"])

    assert store.names() == ["synthetic:train"]
    assert {each.image_id for each in map(store.split("synthetic:train").__getitem__, range(3))}


def test_an_own_file_is_prepared_under_its_name(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        '{"image": "a.png", "expression": "the cat", "width": 100, "height": 80, "box_xywh": [10, 10, 40, 40]}\n'
    )

    store = refcli.prepare("mine", file=tmp_path / "mine.jsonl", out=tmp_path / "store")

    assert store.names() == ["mine:train"]
    assert store.split("mine:train")[0].regions[0].box_xyxy == RIGHT


def test_contradictory_sources_are_refused(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        refcli.prepare("mine", file=tmp_path / "a", raw=tmp_path, out=tmp_path / "store")
    with pytest.raises(UsageError, match="generated, not read from files"):
        refcli.prepare("synthetic", raw=tmp_path, out=tmp_path / "store")
    with pytest.raises(UsageError, match="read from its published files"):
        refcli.prepare("refcoco_unc", out=tmp_path / "store")


def test_a_model_is_finetuned_and_its_answers_are_evaluated(tmp_path):
    store = refcli.prepare("synthetic", out=tmp_path / "store", settings={"size": 4}, splits=["train", "val"]).path
    settings = load_finetune(
        "synthetic_tiny", ["train.steps=1", "train.batch_size=2", "data.workers=0", "train.device=cpu"]
    )

    weights = refcli.finetune(settings, store=store, out=tmp_path / "run")
    scored = refcli.evaluate_weights(weights, store, ["synthetic:val"], device="cpu")

    assert 0 <= scored.reports[0].overall.metrics["acc50"] <= 1
