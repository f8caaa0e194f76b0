"""Boxes one by one: the greedy matching of GREC, and ranks of phrase grounding."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.evaluation.box_matches import first_hit, greedy_matches
from refcli.evaluation.metrics.measure import measure
from refcli.evaluation.sample_columns import ScoreColumns
from refcli.evaluation.sample_score import score_sample

LEFT, RIGHT, FAR = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0), (400.0, 400.0, 500.0, 500.0)
SHIFTED = (18.0, 0.0, 118.0, 100.0)  # with LEFT: IoU 82 / 118 = 0.69
CORNERED = (18.0, 18.0, 118.0, 118.0)  # with LEFT: IoU 0.506, GIoU 0.460


def figures(*pairs: tuple[list, list], says_none: bool = False, score_threshold: float = 0.7) -> dict[str, float]:
    """Metrics of (true boxes, answered boxes or (box, score) pairs)."""
    scores = []
    for number, (truth, found) in enumerate(pairs):
        regions = tuple(Region(box) for box in truth)
        scored = [one if len(one) == 2 else (one, 0.9) for one in found]
        targets = tuple(Target(box, score) for box, score in scored)
        example = Example(str(number), "d", "s", f"{number}", f"{number}", 600, 600, "x", regions)
        answered = Answer(str(number), "i", "x", 600, 600, targets, says_none or not targets, None, "w")
        scores.append(score_sample(example, answered, score_threshold=score_threshold))
    return dict(measure(ScoreColumns.of(scores)).metrics)


def test_greedy_matching_takes_the_best_pair_first_and_nothing_below_a_half():
    assert greedy_matches(np.array([[0.9, 0.6], [0.8, 0.4]])) == 1  # a maximum matching would find 0.6 and 0.8
    assert greedy_matches(np.array([[0.9, 0.6], [0.8, 0.5]])) == 2
    assert greedy_matches(np.array([[0.5, 0.0], [0.0, 0.49]])) == 1
    assert greedy_matches(np.zeros((0, 3))) == greedy_matches(np.zeros((3, 0))) == 0


def test_greedy_matching_never_finds_more_than_the_best_assignment():
    generator = np.random.default_rng(0)
    for _ in range(100):
        overlaps = generator.random((3, 4))
        best = max(sum(overlaps[row, column] >= 0.5 for row, column in enumerate(p)) for p in permutations(range(4), 3))
        assert best - 1 <= greedy_matches(overlaps) <= best


def test_an_answer_is_right_if_its_boxes_are_exactly_the_targets():
    for truth, found, is_right in [
        ([LEFT, RIGHT], [RIGHT, LEFT], 1),
        ([LEFT, RIGHT], [LEFT, RIGHT, FAR], 0),
        ([LEFT, RIGHT], [LEFT], 0),
        ([LEFT, RIGHT], [LEFT, LEFT], 0),
        ([LEFT, RIGHT], [], 0),
        ([], [], 1),
        ([], [LEFT], 0),
        ([LEFT], [SHIFTED], 1),
    ]:
        assert figures((truth, found))["grec_pr_iou"] == is_right, (truth, found)
        assert figures((truth, found))["grec_pr_giou"] == is_right, (truth, found)


def test_giou_is_stricter_than_iou():
    measured = figures(([LEFT], [CORNERED]))
    assert (measured["grec_pr_iou"], measured["grec_pr_giou"]) == (1.0, 0.0)
    assert measured["acc50"] == 1.0


def test_boxes_below_the_score_threshold_are_ignored():
    pair = ([LEFT], [(LEFT, 0.7), (FAR, 0.69)])
    assert figures(pair)["grec_pr_iou"] == 1.0
    assert figures(pair, score_threshold=0.5)["grec_pr_iou"] == 0.0
    assert figures(pair, score_threshold=0.8)["grec_t_acc"] == 0.0


def test_nothing_is_kept_after_no_target_and_the_accuracies_count_that():
    targeted, empty = ([LEFT], [LEFT]), ([], [LEFT])
    answered = figures(targeted, empty, says_none=True)
    assert (answered["grec_n_acc"], answered["grec_t_acc"], answered["grec_pr_iou"]) == (1.0, 0.0, 0.5)
    heard = figures(targeted, empty)
    assert (heard["grec_n_acc"], heard["grec_t_acc"], heard["grec_pr_iou"]) == (0.0, 1.0, 0.5)


def test_recall_checks_the_first_boxes_by_score_for_any_box_or_for_the_box_around_all():
    around = (0.0, 0.0, 300.0, 100.0)
    found = [(FAR, 0.9), *[(FAR, 0.8)] * 4, (around, 0.5), (RIGHT, 0.6)]
    measured = figures(([LEFT, RIGHT], found))
    assert [measured[f"recall{k}_any"] for k in (1, 5, 10)] == [0, 0, 1]
    assert [measured[f"recall{k}_union"] for k in (1, 5, 10)] == [0, 0, 1]
    best_first = figures(([LEFT, RIGHT], [(FAR, 0.1), (RIGHT, 0.9), (around, 0.3)]))
    assert [best_first[f"recall{k}_any"] for k in (1, 5)] == [1, 1]
    assert [best_first[f"recall{k}_union"] for k in (1, 5)] == [0, 1]


def test_a_score_that_is_not_a_number_comes_last():
    measured = figures(([LEFT], [(LEFT, float("nan")), (FAR, 0.0)]))
    assert (measured["recall1_any"], measured["recall5_any"], measured["grec_t_acc"]) == (0, 1, 0)


@pytest.mark.parametrize(("ious", "rank"), [([[0.5]], 1), ([[0.1], [0.2]], 0), ([[0.1, 0.2], [0.3, 0.6]], 2)])
def test_the_first_hit_counts_from_one(ious, rank):
    assert first_hit(np.array(ious)) == rank
