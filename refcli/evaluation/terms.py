"""Every metric here is a ratio of two sums over samples; this is the ratio, its value and its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100
"""Bounds the memory: so many resamples times the number of images are held as int64."""


@dataclass(frozen=True)
class Terms:
    """What each sample adds above and below the line."""

    above: np.ndarray
    below: np.ndarray


def share(hits: np.ndarray, among: np.ndarray) -> Terms:
    """The share (or mean) of `hits` among the samples where `among` is True."""
    return Terms(np.where(among, hits, 0), among)


def values(terms: Mapping[str, Terms]) -> dict[str, float]:
    """The figures; one with nothing below the line is left out."""
    sums = {name: (float(pair.above.sum()), float(pair.below.sum())) for name, pair in terms.items()}
    return {name: above / below for name, (above, below) in sums.items() if below > 0}


def intervals(
    terms: Mapping[str, Terms], image: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals that resample whole images, since expressions about one image err together.

    Args:
        terms: per-sample terms of each metric.
        image: image number of each sample.
        seed: of the resampling; the same seed gives the same interval.
        level: probability that the interval is meant to hold.
    """
    numbers, cluster = np.unique(image, return_inverse=True)
    names = list(values(terms))
    if not names:
        return {}
    sums = np.stack(
        [
            np.bincount(cluster, weights=column, minlength=len(numbers))
            for name in names
            for column in (terms[name].above, terms[name].below)
        ],
        axis=1,
    )
    random = np.random.default_rng(seed)
    chances = np.full(len(numbers), 1 / len(numbers))
    draws = [
        random.multinomial(len(numbers), chances, size=RESAMPLES_AT_ONCE) @ sums
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    above, below = np.concatenate(draws).reshape(NUM_RESAMPLES, len(names), 2).transpose(2, 0, 1)
    ratios = np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = np.nanquantile(ratios, tails, axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(names)}
