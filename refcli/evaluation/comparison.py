"""Comparison of two runs on the same samples: differences with intervals and a paired test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from refcli.errors import DataError
from refcli.evaluation.metrics.measure import metric_ratios
from refcli.evaluation.metrics.ratios import (
    NUM_RESAMPLES,
    RESAMPLES_AT_ONCE,
    Ratio,
    sums_by_image,
    values,
    values_of_sums,
)
from refcli.evaluation.run import Run, Scoring, SplitScores

NUM_PERMUTATIONS = 10_000
ROUNDING = 1e-12
"""Differences this close to the observed one count as equal: they differ in the order of additions only."""


@dataclass(frozen=True)
class Difference:
    """A metric of this run beside that of the other."""

    this: float
    other: float
    interval: tuple[float, float]
    """95 % bootstrap interval of this - other; whole images are drawn, for both runs alike."""
    p_value: float
    """Two-sided, of the paired permutation test that swaps the two runs' answers image by image."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on one split."""

    name: str
    num_samples: int
    """Samples that count in both runs; all metrics here are over these."""
    num_left_out: int
    """Samples that count in one run only."""
    metrics: Mapping[str, Difference]
    is_gated: bool = False
    """Whether a wrong "no target" is a miss in all metrics of both runs."""


def compare_runs(this: Run, other: Run) -> list[Comparison]:
    """Compare two runs on every split that both have.

    Raises:
        DataError: see `check_comparable`; or they have no sample of a split in common, or only one of them is gated.
    """
    check_comparable([split.name for split in this.splits], this.scoring, other)
    theirs = {split.name: split for split in other.splits}
    return [compare_splits(split, theirs[split.name]) for split in this.splits if split.name in theirs]


def check_comparable(names: Sequence[str], scoring: Scoring, other: Run, *, has_candidates: bool = False) -> None:
    """Make sure that a run can be compared with another one.

    Args:
        names: its splits.
        scoring: how it is scored.
        other: the other run.
        has_candidates: the answers will have candidates before a "no target".

    Raises:
        DataError: they have no split in common or different score thresholds, or the other run is gated and this one
            will not be.
    """
    theirs = [split.name for split in other.splits]
    if not set(names) & set(theirs):
        raise DataError("the two runs have no split in common", where=f"{', '.join(names)} and {', '.join(theirs)}")
    if scoring.score_threshold != other.scoring.score_threshold:
        raise DataError(
            f"grec_* of the other run counts boxes with a score of at least {other.scoring.score_threshold:g}, this "
            f"one of at least {scoring.score_threshold:g}",
            where=other.weights,
            hint=f"--score-threshold {other.scoring.score_threshold:g}",
        )
    for split in other.splits:
        if has_candidates and split.is_gated and split.name in names and not scoring.gated:
            raise gates_differ(split.name, "the other run", split.num_gated)


def check_gates_alike(this: SplitScores, other: SplitScores) -> None:
    """Make sure that both runs have candidates before a wrong "no target", or neither.

    A split without a wrong "no target" has the same metrics before and after the gate.

    Raises:
        DataError: only one run is gated.
    """
    for gated, before in ((this, other), (other, this)):
        if gated.is_gated and not before.is_gated and before.num_discarded:
            raise gates_differ(this.name, "this run" if gated is this else "the other run", gated.num_gated)


def gates_differ(name: str, which: str, num_gated: int) -> DataError:
    """The error of a comparison of metrics after the gate with metrics before it."""
    return DataError(
        f'the metrics of {which} are gated ({num_gated} wrong "no target" have no candidates), those of '
        "the other are not",
        where=name,
        hint='add --gated, which counts a wrong "no target" as a miss in all metrics of both; or predict again: lines '
        "now have candidates",
    )


def compare_splits(this: SplitScores, other: SplitScores, *, seed: int = 0) -> Comparison:
    """Compare two runs on the samples of one split that count in both, in all metrics that both have.

    Args:
        this: one run.
        other: the other; its samples are found by id.
        seed: of the resampling and the permutations.

    Raises:
        DataError: no sample is in both; or see `check_gates_alike`.
    """
    check_gates_alike(this, other)
    mine, theirs = _counted_ids(this), _counted_ids(other)
    common = pa.array(sorted(set(mine) & set(theirs)), pa.string())
    if not len(common):
        raise DataError(
            f"the two runs have no sample of {this.name} in common",
            where=this.name,
            hint="samples without a usable answer do not count",
        )
    ours, others = this.scores[_places(mine, common)], other.scores[_places(theirs, common)]
    ratios, their_ratios = metric_ratios(ours), metric_ratios(others)
    names = [name for name in values(ratios) if name in values(their_ratios)]
    pairs = [(ratios[name], their_ratios[name]) for name in names]
    return Comparison(
        name=this.name,
        num_samples=len(common),
        num_left_out=len(mine) + len(theirs) - 2 * len(common),
        metrics=dict(zip(names, compare_ratios(pairs, ours.image, seed=seed), strict=True)),
        is_gated=this.is_gated or other.is_gated,
    )


def _counted_ids(split: SplitScores) -> list[str]:
    ids: list[str] = split.table.filter(split.table["counts"])["id"].to_pylist()
    return ids


def _places(ids: list[str], wanted: pa.Array) -> np.ndarray:
    """The index of each of the wanted ids."""
    places: np.ndarray = pc.index_in(wanted, pa.array(ids, pa.string())).to_numpy()
    return places


def compare_ratios(
    pairs: list[tuple[Ratio, Ratio]], image: np.ndarray, *, seed: int, num_permutations: int = NUM_PERMUTATIONS
) -> list[Difference]:
    """Differences of metrics whose ratios are of the same samples.

    Args:
        pairs: the ratios of each metric, of this run and of the other.
        image: image number of each sample.
        seed: of the resampling and the permutations.
        num_permutations: of the test; the smallest p-value is 1 / (num_permutations + 1).
    """
    if not pairs:
        return []
    ours, others = [one for one, _ in pairs], [two for _, two in pairs]
    sums, other_sums = sums_by_image(ours, image), sums_by_image(others, image)
    this, other = values_of_sums(sums.sum(0)[None], ours)[0], values_of_sums(other_sums.sum(0)[None], others)[0]
    low, high = _bootstrap(sums, other_sums, ours, others, np.random.default_rng(seed))
    observed = np.abs(this - other)
    as_large = np.zeros(len(pairs), dtype=np.int64)
    random = np.random.default_rng(seed)
    for start in range(0, num_permutations, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, num_permutations - start)
        swapped = random.integers(0, 2, size=(count, len(sums))).astype(np.float64)
        moved = _weighted(swapped, other_sums - sums)
        differences = values_of_sums(sums.sum(0) + moved, ours) - values_of_sums(other_sums.sum(0) - moved, others)
        as_large += (np.abs(differences) >= observed - ROUNDING).sum(0)
    p_values = (as_large + 1) / (num_permutations + 1)
    return [
        Difference(float(a), float(b), (float(low[at]), float(high[at])), float(p_values[at]))
        for at, (a, b) in enumerate(zip(this, other, strict=True))
    ]


def _bootstrap(
    sums: Float[np.ndarray, "images metrics 2"],
    other_sums: Float[np.ndarray, "images metrics 2"],
    ours: list[Ratio],
    others: list[Ratio],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    chances = np.full(len(sums), 1 / len(sums))
    differences = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        drawn = random.multinomial(len(sums), chances, size=RESAMPLES_AT_ONCE).astype(np.float64)
        differences.append(
            values_of_sums(_weighted(drawn, sums), ours) - values_of_sums(_weighted(drawn, other_sums), others)
        )
    low, high = np.nanquantile(np.concatenate(differences), (0.025, 0.975), axis=0)
    return low, high


def _weighted(
    weights: Float[np.ndarray, "draws images"], sums: Float[np.ndarray, "images metrics 2"]
) -> Float[np.ndarray, "draws metrics 2"]:
    total: Float[np.ndarray, "draws metrics 2"] = (weights @ sums.reshape(len(sums), -1)).reshape(-1, *sums.shape[1:])
    return total
