"""Existence is the decision that the system states; metrics before and after its "no target" are kept apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from refcli.answers.jsonl import answer_from_json, answer_to_json
from refcli.contracts.example import RLE, Example, Region
from refcli.contracts.prediction import Answer, Prediction, Target
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split
from refcli.errors import DataError
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.evaluation.report.document import report_split
from refcli.evaluation.run import Scoring
from refcli.geometry.frame import Frame
from refcli.geometry.masks import encode_mask
from refcli.inference.postprocess import filter_targets, raw_answer
from refcli.inference.predictor import AnsweredRequest
from refcli.inference.requests import Request

SIDE = 60
BOX = (10.0, 10.0, 50.0, 50.0)


def square(side: int) -> RLE:
    bitmap = np.zeros((SIDE, SIDE), dtype=bool)
    bitmap[10 : 10 + side, 10 : 10 + side] = True
    return encode_mask(bitmap)


def example(number: int, *, meant: bool) -> Example:
    regions = (Region(BOX, square(40)),) if meant else ()
    return Example(f"m/{number}", "m", "val", f"{number}.png", f"m:{number}", SIDE, SIDE, "the cup", regions)


TRUTH = [example(number, meant=number < 6) for number in range(10)]
"""Six samples with a target, four without."""


def answer(number: int, mask_side: int, *, none: bool, score: float | None = None, empty: bool = False) -> Answer:
    targets = () if empty else (Target(BOX, 0.9, square(mask_side)),)
    return Answer(f"m/{number}", "", "the cup", SIDE, SIDE, targets, none, score, "w")


@pytest.fixture
def store(tmp_path) -> Path:
    write_manifest(tmp_path / "store", [write_split(tmp_path / "store", "m", "val", TRUTH)])
    return tmp_path / "store"


@pytest.fixture
def score(refcli, store, tmp_path):
    """The document of `evaluate --predictions`."""

    def run(answers: list[Answer | dict], *arguments: object) -> dict:
        path = tmp_path / "answers.jsonl"
        records = [one if isinstance(one, dict) else answer_to_json(one) for one in answers]
        path.write_text("\n".join(map(json.dumps, records)))
        asked = ("evaluate", "--data", store, "--split", "m:val", "--predictions", path, "--json")
        code, out, err = refcli(*asked, "--convention", "all", *arguments)
        assert code == 0, err
        return json.loads(out)

    return run


def accuracies(document: dict, convention: str) -> tuple[float, float, float]:
    start = "m/val/" if convention == "original" else f"m/val/{convention}/"
    return tuple(document["metrics"][start + name] for name in ("n_acc", "t_acc", "giou"))


CONVENTIONS = ("original", "rela480", "rela480-text", "gsva")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("score_given", [True, False])
def test_a_stated_decision_counts_whatever_the_mask(score, convention, score_given):
    """Empty and tiny masks where a target is stated, large ones where none is."""
    sides = [40, 40, 0, 5, 40, 40, 0, 5, 40, 40]
    none = [False, False, False, False, True, False, False, False, True, False]
    answers = [
        answer(number, side, none=states_none, score=(0.9 if states_none else 0.1) if score_given else None)
        for number, (side, states_none) in enumerate(zip(sides, none, strict=True))
    ]
    n_acc, t_acc, giou = accuracies(score(answers), convention)
    assert n_acc == 1 / 4
    assert t_acc == 5 / 6
    ious = [1, 1, 0, 25 / 1600, 1 if convention == "gsva" else 0, 1, 0, 0, 1, 0]
    assert giou == pytest.approx(np.mean(ious), abs=2e-3)


def test_fifty_pixels_decide_for_a_system_that_never_states_a_decision(score):
    sides = [40, 40, 0, 5, 40, 40, 0, 0, 40, 40]
    answers = [answer(number, side, none=False) for number, side in enumerate(sides)]
    unstated = [answer_to_json(one) | {"no_target": None} for one in answers]
    for lines in (answers, unstated):
        document = score(lines)
        assert accuracies(document, "rela480")[:2] == (
            2 / 4,
            5 / 6,
        )  # 5 x 5 of 60 x 60 become 1,600 at 480
        assert accuracies(document, "original")[:2] == (0, 1)


def test_an_answer_without_any_target_is_no_target_regardless_of_its_flag(score):
    answers = [answer(number, 40, none=False, score=0.2, empty=number in (2, 7)) for number in range(10)]
    for convention in CONVENTIONS:
        assert accuracies(score(answers), convention)[:2] == (1 / 4, 5 / 6)


def gated_file() -> list[Answer]:
    """A system that states "no target" for two existing targets, and drops its proposals."""
    return [answer(number, 40, none=number in (1, 2, 7, 8), empty=number in (1, 2, 7, 8)) for number in range(10)]


def with_candidates() -> list[dict]:
    """The same system, which keeps its proposals."""
    found = [answer(number, 40, none=False) for number in range(10)]
    return [
        answer_to_json(
            replace(one, targets=(), no_target=True, candidates=one.targets, no_target_source="existence")
            if number in (1, 2, 7, 8)
            else one
        )
        for number, one in enumerate(found)
    ]


def test_lines_without_candidates_are_scored_gated_with_a_note(refcli, score, store, tmp_path):
    document = score(gated_file())
    assert document["splits"]["m:val"]["gated"] is True
    assert document["splits"]["m:val"]["gated_answers"] == 2
    assert document["metrics"]["m/val/acc50"] == document["metrics"]["m/val/acc50_gated"] == 4 / 6
    asked = ("evaluate", "--data", store, "--split", "m:val", "--predictions", tmp_path / "answers.jsonl")
    _, out, _ = refcli(*asked, "--report", "--out", tmp_path / "out")
    assert "Acc@0.5 (gated)" in out
    assert "mask mIoU (gated)" in out
    assert 'gated: 2 wrong "no target" count as misses' in out
    page = (tmp_path / "out/report.html").read_text()
    assert "gated</span>" in page
    assert "answers.jsonl (gated)" in refcli(*asked, *asked[5:])[1]


def test_lines_with_candidates_are_scored_before_the_gate(score):
    document = score(with_candidates())
    assert document["splits"]["m:val"]["gated"] is False
    assert document["metrics"]["m/val/acc50"] == document["metrics"]["m/val/mask_miou"] == 1
    assert document["metrics"]["m/val/acc50_gated"] == document["metrics"]["m/val/t_acc"] == 4 / 6
    kept_in_targets = [replace(one, no_target=number in (1, 2)) for number, one in enumerate(map(whole, range(10)))]
    assert score(kept_in_targets)["metrics"]["m/val/acc50"] == 1


def whole(number: int) -> Answer:
    return answer(number, 40, none=False)


def test_gated_and_other_metrics_are_not_compared(refcli, score, store, tmp_path):
    score(with_candidates(), "--out", tmp_path / "before")
    score(gated_file(), "--out", tmp_path / "after")
    asked = ("evaluate", "--data", store, "--split", "m:val", "--predictions")
    gated, complete = tmp_path / "gated.jsonl", tmp_path / "complete.jsonl"
    gated.write_text("\n".join(json.dumps(answer_to_json(one)) for one in gated_file()))
    complete.write_text("\n".join(map(json.dumps, with_candidates())))
    for file, other in ((gated, "before"), (complete, "after")):
        code, out, err = refcli(*asked, file, "--compare", tmp_path / other)
        assert (code, out) == (5, "")
        assert "add --gated" in err
        code, out, _ = refcli(*asked, file, "--compare", tmp_path / other, "--gated", "--json")
        assert code == 0
        comparison = json.loads(out)["comparison"]["m:val"]
        assert comparison["gated"] is True
        assert all(one["this"] == one["other"] for one in comparison["metrics"].values())
    assert refcli(*asked, gated, "--compare", tmp_path / "after")[0] == 0
    assert refcli(*asked, complete, "--compare", tmp_path / "before")[0] == 0


def test_a_model_is_not_run_for_a_comparison_that_will_be_refused(refcli, score, store, tmp_path):
    score(gated_file(), "--out", tmp_path / "after")
    asked = ("evaluate", "--data", store, "--split", "m:val", "--compare", tmp_path / "after")
    code, out, err = refcli(*asked, "--out", tmp_path / "out")
    assert (code, out) == (5, "")
    assert "--gated" in err
    assert not (tmp_path / "out").exists()


def test_gated_runs_are_merged_and_stay_gated(refcli, score, tmp_path):
    whole_run = score(with_candidates(), "--gated", "--out", tmp_path / "whole")
    for number in (1, 2):
        score(with_candidates(), "--gated", "--shard", f"{number}/2", "--out", tmp_path / f"part{number}")
    _, out, _ = refcli("evaluate", "--merge", tmp_path / "part1", tmp_path / "part2", "--json")
    assert json.loads(out)["metrics"] == whole_run["metrics"]
    assert json.loads(out)["splits"]["m:val"]["gated"] is True


@pytest.mark.parametrize("field", [{"no_target_source": "weather"}, {"candidates": {}}, {"candidates": [{"box": []}]}])
def test_a_malformed_reason_or_candidate_is_refused(field):
    with pytest.raises(DataError):
        answer_from_json(with_candidates()[1] | field)


class DrawsAndDecides:
    """A mask-only head with some empty masks and its own decision about existence."""

    MASK_SIDES = (40, 40, 0, 0, 40, 40, 0, 0, 40, 40)
    EXISTENCE = (0.9, 0.1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1)

    def __init__(self, *, decides: bool) -> None:
        self.decides = decides

    def answer_requests(self, requests, *, raw):
        frame = Frame.fit(SIDE, SIDE, SIDE, SIDE)
        for request in requests:
            number = int(request.id.removeprefix("m/"))
            logits = torch.full((1, 1, SIDE, SIDE), -1.0)
            logits[..., 10 : 10 + self.MASK_SIDES[number], 10 : 10 + self.MASK_SIDES[number]] = 1.0
            existence = torch.tensor([self.EXISTENCE[number]]) if self.decides else None
            prediction = Prediction(None, torch.tensor([[0.8]]), logits, existence)
            yield AnsweredRequest(request, raw_answer(prediction, 0, frame, request, "draws"))


@pytest.mark.parametrize("decides", [True, False])
def test_an_empty_mask_does_not_revoke_the_target_that_a_head_states(score, store, decides):
    model = DrawsAndDecides(decides=decides)
    names = choose_conventions(["all"])
    split = Store(store).split("m:val")
    scored = evaluate_split(model, split, name="m:val", scoring=Scoring(names))
    for name in CONVENTIONS:
        figures = report_split(scored, names).conventions[name].metrics
        none = [e < 0.5 for e in model.EXISTENCE] if decides else [side == 0 for side in model.MASK_SIDES]
        assert figures["n_acc"] == np.mean(none[6:]), name
        assert figures["t_acc"] == np.mean(np.logical_not(none[:6])), name
    asked = (Request(example.id, "", "x") for example in TRUTH)
    lines = [answer_to_json(filter_targets(answer)) for _, answer, _ in model.answer_requests(asked, raw=True)]
    assert [line["no_target"] for line in lines] == [
        side == 0 or (decides and existence < 0.5)
        for side, existence in zip(model.MASK_SIDES, model.EXISTENCE, strict=True)
    ]
    in_file = score(lines)["metrics"]
    for name, slice_ in report_split(scored, names).conventions.items():
        for metric, value in slice_.metrics.items():
            assert in_file["/".join(["m", "val", *([name] if name != "original" else []), metric])] == value
