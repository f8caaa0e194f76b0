"""The existence threshold is the best of those that enough samples with a target pass, the score threshold of all."""

import numpy as np
import pytest

from refcli.config.schema import HeadChoice, ModelSettings
from refcli.errors import DataError
from refcli.evaluation.calibration import best_threshold, calibrate_existence, right_thresholds, with_threshold
from refcli.geometry.boxes import box_iou


def accuracies(threshold, existence, has_target):
    kept = existence >= threshold
    return kept[has_target].mean(), (~kept[~has_target]).mean()


def test_two_separate_groups_are_separated():
    existence, has_target = np.array([0.9, 0.2, 0.8, 0.3]), np.array([True, False, True, False])
    threshold = calibrate_existence(existence, has_target, min_t_acc=0.95)
    assert accuracies(threshold, existence, has_target) == (1.0, 1.0)


def test_no_threshold_of_a_fine_grid_is_better():
    generator = np.random.default_rng(0)
    has_target = generator.random(500) < 0.8
    existence = np.clip(generator.normal(np.where(has_target, 0.7, 0.4), 0.15), 0, 1)
    threshold = calibrate_existence(existence, has_target, min_t_acc=0.9)
    t_acc, n_acc = accuracies(threshold, existence, has_target)
    others = [accuracies(other, existence, has_target) for other in np.linspace(0, 1, 2001)]
    assert t_acc >= 0.9
    assert t_acc + n_acc >= max(sum(pair) for pair in others if pair[0] >= 0.9) - 1e-9


def test_samples_that_all_have_a_target_are_an_error():
    with pytest.raises(DataError):
        calibrate_existence(np.array([0.5, 0.6]), np.array([True, True]), min_t_acc=0.9)


def test_a_new_threshold_changes_nothing_else_of_the_settings():
    before = ModelSettings(head=HeadChoice(name="rela", settings={"regions": 4, "existence_threshold": 0.5}))
    after = with_threshold(before, 0.25)
    assert after.head.settings == {"regions": 4, "existence_threshold": 0.25}
    assert after.tower == before.tower
    assert before.head.settings["existence_threshold"] == 0.5


def boxes_and_scores(generator):
    """Up to four answered boxes with scores, most of them near one of up to three true boxes, and a gate."""
    true = np.array([[30.0 * k, 0.0, 30.0 * k + 20, 20.0] for k in range(generator.integers(0, 4))]).reshape(-1, 4)
    found = [[200.0, 0.0, 220.0, 20.0]]
    for box in true:
        found += [(box + generator.normal(0, 2, 4)).tolist()] * (generator.random() < 0.8)
    return np.array(found), generator.random(len(found)), true, bool(generator.random() < 0.1)


def is_exact(boxes, scores, true, says_none, threshold):
    """Whether the boxes with a sufficient score are the true ones, box by box: the true boxes are far apart."""
    kept = [] if says_none else boxes[scores >= threshold]
    if len(kept) != len(true):
        return False
    return all(max(box_iou(tuple(box), tuple(other)) for other in kept) >= 0.5 for box in true.tolist())


def test_the_score_threshold_is_as_good_as_any_of_a_fine_grid():
    generator = np.random.default_rng(4)
    samples = [boxes_and_scores(generator) for _ in range(80)]
    ranges = [right_thresholds(scores, boxes, true, says_none=none) for boxes, scores, true, none in samples]
    grid = np.linspace(0.0005, 0.9995, 1000)
    for (low, high), (boxes, scores, true, none) in zip(ranges, samples, strict=True):
        for threshold in grid[::37]:
            assert (low < threshold <= high) == is_exact(boxes, scores, true, none, threshold)
    found = best_threshold(np.array(ranges))
    shares = [np.mean([low < threshold <= high for low, high in ranges]) for threshold in grid]
    assert found.exact_sets >= max(shares)
    exact = np.mean([is_exact(boxes, scores, true, none, found.threshold) for boxes, scores, true, none in samples])
    assert found.exact_sets == pytest.approx(exact)
