"""Every metric here is a ratio of two sums over samples; this is the ratio, its value and its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100
"""Bounds the memory: so many resamples times the number of images are held as int64."""


@dataclass(frozen=True)
class Terms:
    """What each sample adds above and below the line."""

    above: np.ndarray
    below: np.ndarray
    where_empty: float | None = None
    """The figure where the sum below the line is 0; None: it was not measured."""


def share(hits: np.ndarray, among: np.ndarray) -> Terms:
    """The share (or mean) of `hits` among the samples where `among` is True."""
    return Terms(np.where(among, hits, 0), among)


def values(terms: Mapping[str, Terms]) -> dict[str, float]:
    """The figures; one that was not measured is left out."""
    figures = {name: _ratio(float(pair.above.sum()), float(pair.below.sum()), pair) for name, pair in terms.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _ratio(above: float, below: float, terms: Terms) -> float | None:
    return above / below if below > 0 else terms.where_empty


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
    names = list(values(terms))
    if not names:
        return {}
    sums = sums_by_image([terms[name] for name in names], image)
    num_images = len(sums)
    random = np.random.default_rng(seed)
    chances = np.full(num_images, 1 / num_images)
    draws = [
        random.multinomial(num_images, chances, size=RESAMPLES_AT_ONCE) @ sums.reshape(num_images, -1)
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    figures = ratios(np.concatenate(draws).reshape(NUM_RESAMPLES, len(names), 2), [terms[name] for name in names])
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = np.nanquantile(figures, tails, axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(names)}


def sums_by_image(terms: Sequence[Terms], image: np.ndarray) -> Float[np.ndarray, "images metrics 2"]:
    """What each image adds above and below the line, in the order of the images' numbers."""
    numbers, cluster = np.unique(image, return_inverse=True)
    columns = [
        np.bincount(cluster, weights=column, minlength=len(numbers))
        for pair in terms
        for column in (pair.above, pair.below)
    ]
    return np.stack(columns, axis=1).reshape(len(numbers), len(terms), 2)


def ratios(sums: Float[np.ndarray, "draws metrics 2"], terms: Sequence[Terms]) -> Float[np.ndarray, "draws metrics"]:
    """The figures of many sums at once; NaN where nothing was measured."""
    empty = np.array([np.nan if pair.where_empty is None else pair.where_empty for pair in terms])
    above, below = sums[..., 0], sums[..., 1]
    figures: Float[np.ndarray, "draws metrics"] = np.where(below > 0, above / np.where(below > 0, below, 1), empty)
    return figures
