"""Evaluation answers every sample once, in order, scores it in image pixels, groups by kind and checks gates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refcli.contracts.example import RLE, Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError, GateError, UsageError
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.gates import check_gates, parse_gates
from refcli.evaluation.metrics.measure import METRIC_GROUPS, METRICS
from refcli.evaluation.report.document import TABLE, RunReport, report_document, report_split, table_rows
from refcli.geometry.masks import encode_mask
from refcli.inference.predictor import AnsweredRequest

BOX = (10.0, 20.0, 50.0, 60.0)


class InMemory:
    """A split of examples without images."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def image_path(self, example: Example) -> Path:
        return Path("/images") / example.image


def filled(box: tuple[float, float, float, float], height: int = 100, width: int = 100) -> RLE:
    """The mask of a box."""
    left, top, right, bottom = map(int, box)
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


class Oracle:
    """Answers correctly, except for the expressions "miss", "refuse" and "fail"."""

    def __init__(self, split: InMemory) -> None:
        self.split = split
        self.asked: list[Path] = []

    def answer_requests(self, requests, *, raw):
        truth = {example.id: example for example in self.split.examples}
        for request in requests:
            self.asked.append(request.source)
            example = truth[request.id]
            boxes = [BOX if example.expression != "miss" else (70.0, 70.0, 80.0, 80.0)]
            targets = tuple(Target(box, 0.9, filled(box)) for box in boxes)
            says_none = not example.regions or example.expression == "refuse"
            error = "unreadable" if example.expression == "fail" else None
            given = (request.id, request.image, request.expression, 100, 100)
            yield AnsweredRequest(request, Answer(*given, targets, says_none, 0.5, "w", error))


def report_of(split: InMemory) -> RunReport:
    return RunReport("w", "float32", 0.7, (report_split(evaluate_split(Oracle(split), split, name="d:s")),))


def sample(number: int, kind: str, expression: str = "right") -> Example:
    regions = () if kind == "no_target" else (Region(BOX, filled(BOX)),)
    return Example(str(number), "d", "s", f"{number}.jpg", str(number), 100, 100, expression, regions, kind)


@pytest.fixture
def split() -> InMemory:
    return InMemory(
        [
            sample(0, "attribute"),
            sample(1, "attribute", "miss"),
            sample(2, "ordinal"),
            sample(3, "ordinal", "refuse"),
            sample(4, "no_target"),
            sample(5, "attribute", "fail"),
        ]
    )


def test_every_sample_is_answered_once_with_its_image_and_the_failed_ones_are_listed(split):
    oracle, progress = Oracle(split), []
    result = evaluate_split(oracle, split, name="d:s", on_sample=lambda done, total: progress.append((done, total)))
    assert oracle.asked == [Path(f"/images/{n}.jpg") for n in range(6)]
    assert progress == [(n, 6) for n in range(1, 7)]
    assert len(result.scores) == 5
    assert result.failures == (("5", "unreadable"),)


def test_metrics_are_grouped_by_kind(split):
    report = report_split(evaluate_split(Oracle(split), split, name="d:s"))
    assert list(report.kinds) == ["attribute", "no_target", "ordinal"]
    assert report.kinds["attribute"].metrics["acc50"] == 0.5
    assert report.kinds["ordinal"].metrics["acc50"] == 1.0
    assert report.kinds["ordinal"].metrics["acc50_gated"] == 0.5
    assert report.kinds["no_target"].metrics["n_acc"] == 1.0
    assert report.overall.count == 5
    assert report.overall.num_targeted == 4
    assert report.overall.metrics["acc50"] == 0.75


def test_only_the_chosen_rows_are_answered(split):
    oracle = Oracle(split)
    assert len(evaluate_split(oracle, split, name="d:s", rows=range(2)).scores) == 2
    assert oracle.asked == [Path("/images/0.jpg"), Path("/images/1.jpg")]


def test_the_document_is_json_with_flat_keys_and_all_metrics(split):
    document = json.loads(json.dumps(report_document(report_of(split))))
    assert document["schema"] == "refcli.evaluation/1"
    assert document["metrics"]["d/s/acc50"] == 0.75
    of_sets = {name for name in METRIC_GROUPS["sets"] if not name.startswith("grec")}
    of_other_data = {*of_sets, "riou", "mrr", "coco_map"}
    assert {key.removeprefix("d/s/") for key in document["metrics"]} == set(METRICS) - of_other_data
    assert document["splits"]["d:s"]["failures"] == [{"id": "5", "error": "unreadable"}]
    low, high = document["splits"]["d:s"]["intervals"]["acc50"]
    assert 0 <= low <= 0.75 <= high <= 1


def test_the_table_has_a_row_per_kind_and_the_overall_last_with_dashes_for_unmeasured_metrics(split):
    rows = table_rows(report_split(evaluate_split(Oracle(split), split, name="d:s")))
    assert [row[0] for row in rows] == ["attribute", "no_target", "ordinal", "overall"]
    assert rows[0][:3] == ["attribute", "2", "50.0"]
    assert rows[1][2 : 2 + len(TABLE)] == ["-", "-", "-", "-", "-", "100.0", "-"]


def test_a_split_without_kinds_or_without_answers_has_the_overall_row_only(split):
    for examples in ([], [Example("5", "d", "s", "5.jpg", "5", 100, 100, "fail", ())]):
        bare = InMemory(examples)
        rows = table_rows(report_split(evaluate_split(Oracle(bare), bare, name="d:s")))
        assert rows == [["overall", "0", *["-"] * len(TABLE)]]


def test_gates_are_checked_for_every_split_and_all_misses_are_named(split):
    report = report_of(split)
    check_gates([report], parse_gates(["acc50=0.75", "n_acc=1"]))
    with pytest.raises(GateError, match=r"acc50 is 0.7500, wanted 0.8; d:s t_acc is 0.7500, wanted 0.9") as caught:
        check_gates([report], parse_gates(["acc50=0.8", "t_acc=0.9"]))
    assert caught.value.exit_code == 4


def test_a_gate_on_an_unmeasured_metric_is_not_met(split):
    report = report_of(InMemory([sample(0, "attribute")]))
    with pytest.raises(GateError, match="n_acc was not measured"):
        check_gates([report], {"n_acc": 0.0})
    with pytest.raises(GateError, match="lavt480/mask_miou was not measured"):
        check_gates([report], parse_gates(["lavt480/mask_miou=0.5"]))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("acc5O=0.8", "did you mean 'acc50'"),
        ("acc50", "no number"),
        ("acc50=high", "no number"),
        ("acc50=85", "fraction"),
        ("acc50=nan", "fraction"),
        ("lavt480/acc50=0.5", "no metric called 'acc50'"),
        ("lavt=0.5", "no metric called 'lavt'"),
        ("lavt/mask_miou=0.5", "known: original"),
    ],
)
def test_malformed_gates_are_refused(gate, message):
    with pytest.raises(UsageError) as caught:
        parse_gates([gate])
    assert message in str(caught.value)


def test_a_gate_on_a_convention_that_is_not_measured_names_the_option_to_add():
    with pytest.raises(UsageError, match="add --convention lavt480"):
        parse_gates(["lavt480/mask_miou=0.5"], conventions=["original"])


def test_samples_are_grouped_by_words_size_and_number_of_targets():
    two = (Region(BOX, filled(BOX)), Region((0.0, 0.0, 5.0, 5.0), filled((0, 0, 5, 5))))
    small = Example("3", "d", "s", "3.jpg", "3", 100, 100, "the tiny red star there", two[1:])
    both = Example("4", "d", "s", "4.jpg", "4", 100, 100, "all of them", two)
    split = InMemory([sample(0, "k"), sample(1, "k", "miss"), sample(2, "no_target"), small, both])
    groups = report_split(evaluate_split(Oracle(split), split, name="d:s")).breakdown
    assert {name: part.count for name, part in groups["words"].items()} == {"1-2 words": 3, "3-5 words": 2}
    assert {name: part.count for name, part in groups["box_size"].items()} == {
        "box < 2 %": 1, "box 10-30 %": 2, "box 30+ %": 1,
    }  # fmt: skip
    assert {name: part.count for name, part in groups["targets"].items()} == {
        "no target": 1, "1 target": 3, "2 targets": 1,
    }  # fmt: skip
    assert groups["box_size"]["box 10-30 %"].metrics["acc50"] == 0.5
    assert groups["targets"]["no target"].metrics["n_acc"] == 1.0


def test_an_error_in_scoring_ends_the_evaluation(split):
    class WrongSize(Oracle):
        def answer_requests(self, requests, *, raw):
            for request, answer, _ in super().answer_requests(requests, raw=raw):
                wrong = Answer(answer.id, answer.image, answer.expression, 1, 1, (), True, None, "w")
                yield AnsweredRequest(request, wrong)

    with pytest.raises(DataError, match="1 x 1"):
        evaluate_split(WrongSize(split), split, name="d:s")


def test_intervals_are_the_same_on_every_run(split):
    first, second = (report_split(evaluate_split(Oracle(split), split, name="d:s")).intervals for _ in range(2))
    assert first == second
    assert np.isfinite(list(first.values())).all()
