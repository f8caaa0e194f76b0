"""The difference of two runs: its interval covers the truth, and its p-value is small only if there is one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from refcli.data.store.read import Store
from refcli.errors import DataError
from refcli.evaluation.comparison import compare_ratios, compare_runs
from refcli.evaluation.metrics.ratios import Ratio, share
from refcli.evaluation.predictions import score_file
from refcli.evaluation.run import Run

SPLIT = "synthetic:test"


def accuracy(hits: np.ndarray) -> Ratio:
    return share(hits, np.ones(len(hits), dtype=bool))


def test_the_p_value_is_that_of_all_exchanges():
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(8), 3)
    this, other = generator.random(24) < 0.8, generator.random(24) < 0.4
    difference = np.array([this[image == one].sum() - other[image == one].sum() for one in range(8)])
    swaps = [abs(np.dot(signs, difference)) >= abs(difference.sum()) for signs in product((-1, 1), repeat=8)]
    (found,) = compare_ratios([(accuracy(this), accuracy(other))], image, seed=0)
    assert found.p_value == pytest.approx(np.mean(swaps), abs=0.02)
    assert found.this - found.other == pytest.approx(difference.sum() / 24)


def test_with_one_question_per_image_it_agrees_with_the_exact_test_of_mcnemar():
    generator = np.random.default_rng(1)
    this, other = generator.random(400) < 0.75, generator.random(400) < 0.70
    (found,) = compare_ratios([(accuracy(this), accuracy(other))], np.arange(400), seed=0)
    better, worse = int((this & ~other).sum()), int((other & ~this).sum())
    expected = stats.binomtest(better, better + worse).pvalue
    assert found.p_value == pytest.approx(expected, abs=0.02)
    low, high = found.interval
    assert low <= found.this - found.other <= high
    spread = 3.92 * np.sqrt((this.astype(float) - other).var() / 400)
    assert high - low == pytest.approx(spread, rel=0.2)


def test_equal_runs_differ_by_nothing():
    hits = np.random.default_rng(2).random(50) < 0.5
    (found,) = compare_ratios([(accuracy(hits), accuracy(hits))], np.arange(50), seed=0)
    assert (found.interval, found.p_value) == ((0.0, 0.0), 1.0)


def test_p_values_are_uniform_where_there_is_no_difference():
    generator = np.random.default_rng(3)
    image = np.repeat(np.arange(30), 4)
    p_values = []
    for _ in range(200):
        shared = np.repeat(generator.random(30), 4)  # expressions about one image err together
        this, other = generator.random(120) < shared, generator.random(120) < shared
        (found,) = compare_ratios([(accuracy(this), accuracy(other))], image, seed=0, num_permutations=400)
        p_values.append(found.p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.1
    assert 0.4 < np.mean(p_values) < 0.65


@pytest.fixture
def run(store, write_lines):
    def make(answers, name: str) -> Run:
        return score_file(write_lines(answers, name), {SPLIT: Store(store).split(SPLIT)})

    return make


def test_runs_are_compared_on_the_samples_that_both_answered(run, examples, truth_of):
    right = [truth_of(example) for example in examples]
    silent = [replace(answer, targets=(), no_target=True) for answer in right]
    targeted = next(n for n, answer in enumerate(right) if answer.targets)
    without_one = right[:targeted] + right[targeted + 1 :]
    (found,) = compare_runs(run(without_one, "right.jsonl"), run(silent, "silent.jsonl"))
    assert (found.num_samples, found.num_left_out) == (len(examples) - 1, 1)
    assert (found.metrics["acc50"].this, found.metrics["acc50"].other) == (1.0, 0.0)
    assert found.metrics["acc50"].interval == (1.0, 1.0)
    assert found.metrics["acc50"].p_value == pytest.approx(2 / 2 ** len({e.image for e in examples}), abs=0.01)
    assert found.metrics["n_acc"].p_value == 1.0


def test_runs_without_a_split_or_a_sample_in_common_are_refused(run, examples, truth_of):
    answers = [truth_of(example) for example in examples]
    first, second = run(answers[:5], "first.jsonl"), run(answers[5:], "second.jsonl")
    with pytest.raises(DataError, match="no sample of synthetic:test in common"):
        compare_runs(first, second)
    elsewhere = replace(second, splits=(replace(second.splits[0], name="d:s"),))
    with pytest.raises(DataError, match="no split in common"):
        compare_runs(first, elsewhere)
