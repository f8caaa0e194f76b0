"""A prediction file is scored line by line; missing and rejected lines are reported, and memory stays small."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from refcli.answers.jsonl import answer_to_json, mask_to_json
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.data.store.read import Store
from refcli.errors import DataError
from refcli.evaluation.metrics.conventions import CONVENTIONS, choose_conventions
from refcli.evaluation.metrics.measure import METRIC_GROUPS
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.document import report_split
from refcli.evaluation.run import Run, Scoring
from refcli.geometry.masks import decode_mask, encode_mask

SPLIT = "synthetic:test"


def score(path, store, split=SPLIT, **settings) -> Run:
    return score_file(path, {split: Store(store).split(split)}, scoring=Scoring(**settings))


def figures(run: Run, convention: str = "original") -> dict[str, float]:
    return dict(report_split(run.splits[0], run.scoring.conventions).conventions[convention].metrics)


def shifted(answer: Answer, across: int, down: int) -> Answer:
    """Every box and mask moved within the image; parts outside are cut off."""

    def move(target: Target) -> Target:
        x1, y1, x2, y2 = target.box_xyxy
        bitmap = np.zeros((answer.height, answer.width), dtype=bool)
        bitmap[down:, across:] = decode_mask(target.mask)[: answer.height - down, : answer.width - across]
        return replace(target, box_xyxy=(x1 + across, y1 + down, x2 + across, y2 + down), mask=encode_mask(bitmap))

    return replace(answer, targets=tuple(map(move, answer.targets)))


def test_the_truth_scores_100_everywhere(store, examples, truth_of, write_lines):
    run = score(write_lines(map(truth_of, examples)), store, conventions=choose_conventions(["all"]))
    assert run.problems == {}
    assert run.splits[0].failures == ()
    first_box = {"first-box", "groundingme"}  # the truth of a plural is several boxes
    perfect = set(CONVENTIONS) - {"oneref384"} - first_box  # the masks of oneref384 grow on the way: see the next test
    found = {name: figures(run, name) for name in CONVENTIONS}
    of_one_box = {f"recall{k}_union" for k in (1, 5, 10)}  # the truth of a plural is several boxes, not the one around
    assert {key for name in perfect for key, value in found[name].items() if value < 1 - 1e-6} <= of_one_box
    assert all(value == 1 for key, value in found["oneref384"].items() if key.startswith(("acc", "box")))
    enclosing = score(write_lines(one_box(truth_of(example)) for example in examples), store)
    of_one_by_one = {*METRIC_GROUPS["sets"], "recall1_any", "recall5_any", "recall10_any"}
    assert {key for key, value in figures(enclosing).items() if value < 1} <= of_one_by_one - {
        "grec_n_acc",
        "grec_t_acc",
    }


def one_box(answer: Answer) -> Answer:
    """An answer with all its targets as one, which has the box around them and the union of their masks."""
    if len(answer.targets) < 2:
        return answer
    boxes = np.array([target.box_xyxy for target in answer.targets])
    together = np.logical_or.reduce([decode_mask(target.mask) for target in answer.targets])
    box = tuple(np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]).tolist())
    return replace(answer, targets=(Target(box, 1.0, encode_mask(together)),))


def test_a_perfect_mask_is_a_little_larger_than_the_truth_in_oneref384(store, examples, truth_of, write_lines):
    run = score(write_lines(map(truth_of, examples)), store, conventions=choose_conventions(["oneref384"]))
    counts = run.splits[0].scores.overlaps["letterbox384"]
    targeted = counts.truth > 0
    assert (counts.union[targeted] > counts.truth[targeted]).all()
    assert (counts.intersection >= 0.97 * counts.truth).all()


def test_shifted_truth_scores_what_a_plain_loop_counts(store, examples, truth_of, write_lines):
    answers = [shifted(truth_of(example), 9, 5) for example in examples]
    measured = figures(score(write_lines(answers), store))
    box_ious, mask_ious, intersections, unions = [], [], 0, 0
    for example, answer in zip(examples, answers, strict=True):
        if not example.regions:
            continue
        regions = np.array([region.box_xyxy for region in example.regions])
        x1, y1, x2, y2 = *regions[:, :2].min(0), *regions[:, 2:].max(0)
        inside = max(x2 - x1 - 9, 0) * max(y2 - y1 - 5, 0)
        box_ious.append(inside / (2 * (x2 - x1) * (y2 - y1) - inside))
        truth = np.zeros((example.height, example.width), dtype=bool)
        drawn = truth.copy()
        for region, target in zip(example.regions, answer.targets, strict=True):
            truth |= decode_mask(region.mask)
            drawn |= decode_mask(target.mask)
        mask_ious.append((truth & drawn).sum() / (truth | drawn).sum())
        intersections += (truth & drawn).sum()
        unions += (truth | drawn).sum()
    num_empty = len(examples) - len(box_ious)
    assert 0.2 < np.mean(box_ious) < 0.95
    assert measured["box_miou"] == pytest.approx(np.mean(box_ious), abs=1e-3)  # a file holds boxes to 0.01 pixel
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert measured[f"acc{round(100 * threshold)}"] == np.mean(np.array(box_ious) >= threshold)
        assert measured[f"pr{round(100 * threshold)}"] == np.mean(np.array(mask_ious) >= threshold)
    assert measured["mask_miou"] == pytest.approx(np.mean(mask_ious))
    assert measured["mask_oiou"] == measured["ciou"] == pytest.approx(intersections / unions)
    assert measured["giou"] == pytest.approx((sum(mask_ious) + num_empty) / len(examples))


def test_order_and_compression_change_nothing(store, examples, truth_of, write_lines, tmp_path):
    answers = [shifted(truth_of(example), 3, 4) for example in examples]
    straight = write_lines(answers)
    mixed = write_lines(random.Random(0).sample(answers, len(answers)), "mixed.jsonl")
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(mixed.read_bytes()))
    tables = [score(path, store).splits[0].table for path in (straight, mixed, packed)]
    plain, shuffled, unpacked = (repr(table.to_pydict()) for table in tables)  # NaN equals NaN in print only
    assert plain == shuffled == unpacked


def test_every_rejected_line_is_counted_and_quoted(store, examples, truth_of, write_lines):
    good = list(map(truth_of, examples))
    targeted = next(n for n, answer in enumerate(good) if answer.targets)
    record = answer_to_json(good[targeted])
    damaged = record | {"targets": [record["targets"][0] | {"mask": {"size": [5, 5], "counts": "000"}}]}
    other_size = [answer for n, answer in enumerate(good) if n != targeted]
    other_size[0] = replace(other_size[0], width=other_size[0].width + 1)
    path = write_lines(
        [
            *other_size,
            json.dumps(damaged),
            "{not json",
            "[1, 2]",
            json.dumps(record | {"schema": "else/1"}),
            json.dumps({key: value for key, value in record.items() if key != "targets"}),
            json.dumps(record | {"width": float("inf")}),
            "",
            good[-1],
            replace(good[-1], id="unknown/id"),
        ]
    )
    run = score(path, store)
    counts = {sort: lines.count for sort, lines in run.problems["predictions.jsonl"].items()}
    assert counts == {"not a prediction": 6, "duplicate id": 1, "unknown id": 1, "wrong size": 1}
    first = run.problems["predictions.jsonl"]["not a prediction"].first
    assert first[1].startswith(f"predictions.jsonl:{len(good) + 1}: not JSON")
    missing, wrong = sorted([good[targeted].id, other_size[0].id]), ()
    assert sorted(ident for ident, _ in run.splits[0].failures) == missing
    assert run.splits[0].wrong == wrong
    assert len(run.splits[0].scores) == len(examples) - 2


def test_a_mask_of_everything_is_scored_and_checked_like_those_of_the_targets(store, examples, truth_of, write_lines):
    example = next(one for one in examples if one.regions)
    record = answer_to_json(shifted(truth_of(example), 3, 4))
    whole = answer_to_json(truth_of(example))["targets"][0]["mask"]
    assert len(example.regions) == 1
    other_size = mask_to_json(encode_mask(np.ones((2, 3), dtype=bool)))
    right = score(write_lines([json.dumps(record | {"mask": whole})]), store).splits[0].scores
    assert (right.overlaps["image"].intersection == right.overlaps["image"].truth).all()
    for mask, sort in (({"size": [5, 5], "counts": "000"}, "not a prediction"), (other_size, "wrong size")):
        run = score(write_lines([json.dumps(record | {"mask": mask})]), store)
        assert {name: lines.count for name, lines in run.problems["predictions.jsonl"].items()} == {sort: 1}


def test_missing_answers_are_left_out_or_wrong_in_all_metrics(store, examples, truth_of, write_lines):
    unanswered = {next(e.id for e in examples if e.regions), next(e.id for e in examples if not e.regions)}
    answers = [truth_of(example) for example in examples if example.id not in unanswered]
    failed = replace(truth_of(next(e for e in examples if e.id in unanswered)), targets=(), error="out of memory")
    path = write_lines([*answers, failed])
    left_out = score(path, store).splits[0]
    assert dict(left_out.failures).keys() == unanswered
    assert "out of memory" in dict(left_out.failures).values()
    assert len(left_out.scores) == len(examples) - 2
    assert all(value == 1 for key, value in figures(score(path, store)).items() if "union" not in key)
    run = score(path, store, missing="wrong", conventions=choose_conventions(["all"]))
    assert run.splits[0].failures == ()
    assert dict(run.splits[0].wrong).keys() == unanswered
    num_targeted = sum(bool(example.regions) for example in examples)
    num_empty = len(examples) - num_targeted
    measured = figures(run)
    for name in ("acc50", "acc50_gated", "pr90", "t_acc", "grec_t_acc", "recall1_any"):
        assert measured[name] == (num_targeted - 1) / num_targeted, name
    for name in ("n_acc", "grec_n_acc"):
        assert measured[name] == (num_empty - 1) / num_empty, name
    for name in ("giou", "grec_pr_iou", "grec_pr_giou"):
        assert measured[name] == pytest.approx(1 - 2 / len(examples)), name
    for name in ("rela480", "gsva"):
        assert figures(run, name)["n_acc"] == (num_empty - 1) / num_empty
        assert figures(run, name)["giou"] == pytest.approx(1 - 2 / len(examples), abs=1e-6)


def test_only_the_chosen_rows_are_scored_and_ids_of_others_are_known(store, examples, truth_of, write_lines):
    split = Store(store).split(SPLIT)
    run = score_file(write_lines(map(truth_of, examples)), {SPLIT: split}, rows={SPLIT: range(5, 9)})
    assert run.splits[0].table["id"].to_pylist() == [example.id for example in examples[5:9]]
    assert run.problems == {}


@pytest.mark.parametrize("content", [None, b"\x1f\x8b\x08\x00broken"])
def test_a_file_that_cannot_be_read_is_an_error(store, tmp_path, content):
    path = tmp_path / "file.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        score(path, store)


def test_memory_does_not_grow_with_the_masks(make_store, write_lines):
    """Four times the samples, each with two ragged masks of more than 10 kB, take hardly any more."""
    ragged = encode_mask(np.random.default_rng(0).random((150, 150)) < 0.5)
    box = (0.0, 0.0, 150.0, 150.0)
    assert len(ragged.counts) > 10_000

    def peak(count: int) -> int:
        examples = [
            Example(f"{n}", "noise", "test", f"{n}.png", f"{n}", 150, 150, "noise", (Region(box, ragged),))
            for n in range(count)
        ]
        out = make_store(examples)
        answers = (
            Answer(one.id, one.image, one.expression, 150, 150, (Target(box, 1.0, ragged),), False, None, "w")
            for one in examples
        )
        path = write_lines(answers)
        del examples
        split = Store(out).split("noise:test")
        tracemalloc.start()
        score_file(path, {"noise:test": split}, bytes_at_once=300_000)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(400) < peak(100) + 500_000


def test_a_parse_failure_is_wrong_in_every_metric_and_counted_on_its_own(store, examples, truth_of, write_lines):
    """It counts whatever `missing` is, and survives the file of the run."""
    first = next(at for at, example in enumerate(examples) if example.regions)
    absent = next(at for at, example in enumerate(examples) if not example.regions)
    answers = [truth_of(example) for example in examples]
    for at in (first, absent):
        answers[at] = replace(answers[at], targets=(), no_target=False, error="no box", parse_failure=True)
    run = score(write_lines(answers), store)
    report = report_split(run.splits[0])
    targeted = sum(bool(example.regions) for example in examples)
    assert (len(report.parse_failures), report.num_wrong, report.failures) == (2, 0, ())
    assert report.parse_failure_share == 2 / len(examples)
    metrics = report.overall.metrics
    assert metrics["acc50"] == metrics["t_acc"] == pytest.approx(1 - 1 / targeted)
    assert metrics["n_acc"] == metrics["grec_n_acc"] == pytest.approx(1 - 1 / (len(examples) - targeted))


def test_a_line_that_marks_a_parse_failure_needs_its_reason(store, examples, truth_of, write_lines):
    line = answer_to_json(truth_of(examples[0])) | {"parse_failure": True}
    run = score(write_lines([json.dumps(line)]), store)
    (problem,) = run.problems["predictions.jsonl"].values()
    assert "parse_failure is true, but error is null" in problem.first[0]
