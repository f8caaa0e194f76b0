"""Metrics as ratios of two sums over samples: their values, and bootstrap intervals that resample whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100
"""Limits memory: this many resamples times the number of images are held as int64."""


@dataclass(frozen=True)
class Ratio:
    """The contribution of each sample to the numerator and to the denominator of a metric."""

    numerators: np.ndarray
    denominators: np.ndarray
    where_empty: float | None = None
    """The value where the denominator is 0; None: the metric was not measured."""


def share(hits: np.ndarray, among: np.ndarray) -> Ratio:
    """The share (or mean) of `hits` among the samples where `among` is True."""
    return Ratio(np.where(among, hits, 0), among)


def values(ratios: Mapping[str, Ratio]) -> dict[str, float]:
    """The values of metrics; one that was not measured is left out."""
    found = {name: _value(ratio) for name, ratio in ratios.items()}
    return {name: value for name, value in found.items() if value is not None}


def _value(ratio: Ratio) -> float | None:
    numerator, denominator = float(ratio.numerators.sum()), float(ratio.denominators.sum())
    return numerator / denominator if denominator > 0 else ratio.where_empty


def intervals(
    ratios: Mapping[str, Ratio], image: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals that resample whole images, since the errors on one image are correlated.

    Args:
        ratios: metric -> its ratio.
        image: image number of each sample.
        seed: of the resampling; the same seed gives the same interval.
        level: probability that an interval should cover.
    """
    names = list(values(ratios))
    if not names:
        return {}
    measured = [ratios[name] for name in names]
    sums = sums_by_image(measured, image)
    num_images = len(sums)
    random = np.random.default_rng(seed)
    chances = np.full(num_images, 1 / num_images)
    draws = [
        random.multinomial(num_images, chances, size=RESAMPLES_AT_ONCE) @ sums.reshape(num_images, -1)
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    found = values_of_sums(np.concatenate(draws).reshape(NUM_RESAMPLES, len(names), 2), measured)
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = np.nanquantile(found, tails, axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(names)}


def sums_by_image(ratios: Sequence[Ratio], image: np.ndarray) -> Float[np.ndarray, "images metrics 2"]:
    """The contribution of each image to numerators and denominators, in the order of the images' numbers."""
    numbers, cluster = np.unique(image, return_inverse=True)
    columns = [
        np.bincount(cluster, weights=column, minlength=len(numbers))
        for ratio in ratios
        for column in (ratio.numerators, ratio.denominators)
    ]
    return np.stack(columns, axis=1).reshape(len(numbers), len(ratios), 2)


def values_of_sums(
    sums: Float[np.ndarray, "draws metrics 2"], ratios: Sequence[Ratio]
) -> Float[np.ndarray, "draws metrics"]:
    """The values of many sums at once; NaN where nothing was measured."""
    empty = np.array([np.nan if ratio.where_empty is None else ratio.where_empty for ratio in ratios])
    above, below = sums[..., 0], sums[..., 1]
    found: Float[np.ndarray, "draws metrics"] = np.where(below > 0, above / np.where(below > 0, below, 1), empty)
    return found
