"""The existence threshold is the best of those that enough samples with a target pass."""

import numpy as np
import pytest

from refcli.config.schema import HeadChoice, ModelSettings
from refcli.errors import DataError
from refcli.evaluation.calibration import calibrate_existence, with_threshold


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
