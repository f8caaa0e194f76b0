"""The figures of newer benchmarks equal their evaluators', and are absent where they mean nothing."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError
from refcli.evaluation.box_matches import best_matches, hits_by_rank, matches_in_order
from refcli.evaluation.evaluate import score
from refcli.evaluation.mask_frames import FRAMES, overlap_in
from refcli.evaluation.metrics.measure import METRIC_GROUPS, break_down, measure, metric_ratios
from refcli.evaluation.run import PER_SAMPLE, Run, Scoring, SplitScores, gated_run, read_run, write_run
from refcli.evaluation.sample_columns import UNKNOWN_EARLIER, ScoreColumns
from refcli.evaluation.sample_score import score_sample
from refcli.geometry.masks import encode_mask

ROOT = Path(__file__).resolve().parents[3]
SIDE = 400
LEFT, RIGHT = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0)
FAR = (300.0, 300.0, 400.0, 400.0)
HALF = (0.0, 0.0, 50.0, 100.0)  # IoU with LEFT: exactly 0.5


def example(*boxes, number=0, expression="x", kind=None, ident=None, ignored=None) -> Example:
    name = ident or str(number)
    regions = tuple(Region(box) for box in boxes)
    return Example(name, "d", "s", f"{number}.jpg", f"{number}", SIDE, SIDE, expression, regions, kind, ignored)


def answer(*boxes, scores=None, says_none=False, existence=None) -> Answer:
    targets = tuple(Target(box, score) for box, score in zip(boxes, scores or [1.0] * len(boxes), strict=True))
    return Answer("0", "i", "x", SIDE, SIDE, targets, says_none or not boxes, existence, "w")


def columns(*pairs: tuple[Example, Answer]) -> ScoreColumns:
    return ScoreColumns.of(score_sample(truth, found) for truth, found in pairs)


def figures(*pairs: tuple[Example, Answer], convention="original") -> dict[str, float]:
    return dict(measure(columns(*pairs), convention).metrics)


def test_all_figures_equal_the_evaluators_of_the_benchmarks():
    """pycocotools' AP; the others are plain loops, which the benchmark compares on more tables."""
    peers = runpy.run_path(str(ROOT / "benchmarks" / "peer_evaluators.py"))
    compared = peers["compare"](peers["random_table"](0, 60))
    assert len(compared) > 35
    for name, (ours, theirs) in compared.items():
        assert ours == pytest.approx(theirs, abs=1e-9), name
    assert sum(0 < theirs < 1 for _, theirs in compared.values()) > 35


def test_the_penalty_of_density_f1_compares_true_with_answered_boxes():
    """One of four boxes is right: P = 1/4, R = 1, F1 = 0.4; times 1/4, however many people are in the image."""
    found = figures((example(LEFT), answer(LEFT, RIGHT, FAR, (0.0, 300.0, 50.0, 350.0))))
    assert (found["set_precision50"], found["set_recall50"]) == (0.25, 1.0)
    assert found["set_f1_50"] == pytest.approx(0.4)
    assert found["density_f1_50"] == found["density_f1"] == pytest.approx(0.1)


def test_set_figures_are_for_splits_with_several_targets_or_answered_boxes():
    of_sets = {name for name in METRIC_GROUPS["sets"] if not name.startswith("grec")}
    assert not of_sets & figures((example(LEFT), answer(LEFT)), (example(), answer())).keys()
    assert {name for name in of_sets if "mask" not in name} <= figures(
        (example(LEFT, RIGHT), answer(LEFT)), (example(), answer())
    ).keys()


def test_matching_in_order_takes_the_best_box_at_each_threshold_and_the_assignment_is_one_for_all():
    ious = np.array([[0.9, 0.7], [0.6, 0.0]])  # answered x true
    assert matches_in_order(ious) == (1, 9)  # the first true box takes the first answer, and leaves none for the second
    assert best_matches(ious) == (2, 3 + 5)  # 0.6 + 0.7 > 0.9
    assert hits_by_rank(np.array([[0.6, 0.55], [0.9, 0.0]])) == (0b0000000111, 0b0111111000)


def test_the_centre_counts_on_the_edge_and_not_beyond():
    on_the_edge, beyond = (50.0, 0.0, 150.0, 100.0), (52.0, 0.0, 152.0, 100.0)
    assert figures((example(LEFT), answer(on_the_edge)))["center_acc"] == 1
    assert figures((example(LEFT), answer(beyond)))["center_acc"] == 0
    assert figures((example(LEFT), answer()))["center_acc"] == 0


def test_thresholds_are_met_by_equality_except_where_the_evaluator_is_strict():
    pair = (example(LEFT), answer(HALF))
    assert (figures(pair)["acc50"], figures(pair)["macc"]) == (1.0, 0.1)
    strict = figures(pair, convention="ref-l4")
    assert (strict["acc50"], strict["macc"]) == (0.0, 0.0)


def test_only_the_first_box_counts_where_the_protocol_says_so():
    pair = (example(LEFT), answer(LEFT, FAR))
    assert figures(pair, convention="first-box")["acc90"] == 1.0
    assert figures(pair)["acc50"] == 0.0


def test_a_rejection_is_right_or_wrong_in_the_accuracy_of_groundingme():
    pairs = [(example(), answer()), (example(), answer(LEFT)), (example(LEFT), answer(LEFT, says_none=True))]
    assert figures(*pairs, convention="groundingme")["acc50"] == pytest.approx(1 / 3)
    assert figures(*pairs)["acc50"] == 1.0


def test_kinds_have_the_same_weight_in_their_mean():
    pairs = [(example(LEFT, kind="common"), answer(LEFT))] * 3 + [(example(LEFT, kind="rare"), answer(FAR))]
    assert (figures(*pairs)["acc50"], figures(*pairs)["acc50_kind_mean"]) == (0.75, 0.5)
    assert "acc50_kind_mean" not in figures(*pairs[:3])


def test_boxes_are_grouped_by_their_side_in_pixels():
    squares = [(0.0, 0.0, side, side) for side in (127.9, 128.0, 256.0, 256.1)]
    groups = break_down(columns(*((example(box), answer(box)) for box in squares)))["box_pixels"]
    assert {name: part.count for name, part in groups.items()} == {
        "box < 128 px": 1,
        "box 128-256 px": 2,
        "box > 256 px": 1,
    }


def test_existence_is_ranked_by_probabilities_or_else_by_scores_and_not_without_either():
    there, absent = example(LEFT), example()
    by_score = [
        (there, answer(LEFT, scores=[0.9])),
        (there, answer(LEFT, scores=[0.3])),
        (absent, answer(FAR, scores=[0.5])),
    ]
    assert figures(*by_score)["auroc"] == 0.5
    with_probability = [
        (one, replace(found, no_target_score=p)) for (one, found), p in zip(by_score, (0.1, 0.2, 0.3), strict=True)
    ]
    assert figures(*with_probability)["auroc"] == 1.0
    assert "auroc" not in figures((there, answer(LEFT)), (absent, answer(FAR)), (absent, answer()))
    assert not {"auroc", "mcc"} & figures(*by_score[:2]).keys()
    assert figures((there, answer(LEFT)), (absent, answer(FAR)))["mcc"] == 0  # all answers are alike


def test_a_missing_answer_that_counts_as_wrong_is_wrong_in_every_figure():
    scoring = Scoring(missing="wrong", score_threshold=0.5)
    failed = replace(answer(), error="no idea")
    ones = [example(LEFT, RIGHT), example(LEFT), example()]
    pairs = [(ones[0], answer(LEFT, RIGHT)), (ones[1], failed), (ones[2], failed)]
    found = measure(ScoreColumns.of(score(one, given, scoring) for one, given in pairs)).metrics
    assert (found["set_recall50"], found["density_f1"], found["center_acc"]) == (0.5, 0.5, 0.5)
    assert (found["mcc"], found["grec_n_acc"]) == (-0.5, 0)


def test_refs_are_those_of_robust_data_sets_only():
    pairs = [(example(LEFT, ident="rrefcoco/7/1"), answer(LEFT)), (example(ident="rrefcoco/7/2"), answer())]
    assert figures(*pairs)["mrr"] == 1.0
    elsewhere = [(replace(one, id=one.id.replace("rrefcoco", "scenes")), given) for one, given in pairs]
    assert not {"mrr", "riou"} & figures(*elsewhere).keys()


def test_average_precision_needs_recurring_descriptions_and_scores():
    pairs = [(example(LEFT, number=n), answer(LEFT, scores=[0.5 + n / 20])) for n in range(10)]
    assert figures(*pairs)["coco_map"] == 1.0
    assert "coco_map" not in figures(*pairs[:9])
    assert "coco_map" not in figures(*((one, answer(LEFT)) for one, _ in pairs))


def test_ignored_pixels_count_in_no_frame():
    """Whatever the truth and the answer have in the ignored region changes nothing."""
    generator = np.random.default_rng(0)
    blobs = [np.kron(generator.random((10, 12)) > 0.5, np.ones((30, 30), dtype=bool)) for _ in range(3)]
    truth, found, ignored = blobs
    for frame in FRAMES:
        everywhere, nowhere = (
            overlap_in(frame, encode_mask(change(truth)), encode_mask(found), ignored=encode_mask(ignored))
            for change in (lambda mask: mask | ignored, lambda mask: mask & ~ignored)
        )
        assert everywhere == nowhere
        assert everywhere.intersection > 0
    counts = overlap_in("image", encode_mask(truth), encode_mask(found), ignored=encode_mask(ignored))
    rest = ~ignored
    assert counts == ((truth & found & rest).sum(), ((truth | found) & rest).sum(), (truth & rest).sum())


def saved(tmp_path, run: Run) -> Run:
    write_run(run, tmp_path / PER_SAMPLE)
    return read_run(tmp_path)


def a_run(*pairs: tuple[Example, Answer]) -> Run:
    table = Scoring().table()
    for row, (one, given) in enumerate(pairs):
        table.add(row, score_sample(one, given))
    return Run("w", None, Scoring(), (SplitScores("d:s", table.finish(), len(pairs), len(pairs), 1.0),))


PAIRS = [(example(LEFT, RIGHT), answer(LEFT, FAR, scores=[0.9, 0.4])), (example(), answer()), (example(LEFT), answer())]


def test_files_keep_all_figures_and_files_of_earlier_versions_have_the_earlier_ones(tmp_path):
    run = a_run(*PAIRS)
    now = measure(run.splits[0].scores).metrics
    assert measure(saved(tmp_path, run).splits[0].scores).metrics == now
    old = pq.read_table(tmp_path / PER_SAMPLE)
    pq.write_table(old.select([n for n in old.column_names if n not in UNKNOWN_EARLIER]), tmp_path / PER_SAMPLE)
    earlier = read_run(tmp_path)
    found = measure(earlier.splits[0].scores).metrics
    assert {name: now[name] for name in found} == found
    assert {"acc50", "macc", "mcc", "grec_pr_iou"} <= found.keys()
    assert not {"set_recall50", "center_acc", "pmf1_box"} & found.keys()
    assert gated_run(earlier).splits[0].scores.box_side is None


def test_damaged_lists_of_boxes_are_refused(tmp_path):
    saved(tmp_path, a_run(*PAIRS))
    table = pq.read_table(tmp_path / PER_SAMPLE)
    for hits in ([[1], [], []], [[1, 1024], [], []], [[1, None], [], []]):
        changed = table.set_column(
            table.column_names.index("box_hits"), "box_hits", pa.array(hits, pa.list_(pa.int16()))
        )
        pq.write_table(changed, tmp_path / PER_SAMPLE)
        with pytest.raises(DataError, match="box_hits"):
            read_run(tmp_path)


def test_after_the_gate_a_wrong_no_target_has_no_boxes():
    pairs = [(example(LEFT), answer(LEFT, scores=[0.9], says_none=True)), (example(LEFT), answer(LEFT, scores=[0.8]))]
    run = a_run(*pairs)
    before, after = (measure(one.splits[0].scores).metrics for one in (run, gated_run(run)))
    assert (before["center_acc"], after["center_acc"]) == (1.0, 0.5)
    boxes = gated_run(run).splits[0].scores.detections
    assert boxes.count.tolist() == [0, 1]
    assert metric_ratios(gated_run(run).splits[0].scores, "first-box")["acc50"].numerators.sum() == 1
