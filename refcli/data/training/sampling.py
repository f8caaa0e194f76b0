"""Which samples make up a batch: endless shuffled epochs for training, one ordered pass for evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from jaxtyping import Int

from refcli.errors import ConfigError, DataError

_MIX_1, _MIX_2, _MIX_STEP = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
"""Constants of SplitMix64 (Steele et al., OOPSLA 2014)."""


class EndlessSampler:
    """Batches of (index, draw) without end, a pure function of the seed and the batch number.

    The stream is one permutation of all samples after the other, cut into global batches; a batch that begins in one
    epoch is filled from the next, so nothing is dropped or repeated inside an epoch. Rank r of w takes every w-th
    sample of each global batch. `draw` seeds a sample's augmentation and depends on (seed, epoch, index) only.

    Args:
        num_samples: length of the data set.
        batch_size: samples per batch and process.
        seed: of the permutations and draws.
        rank: this process.
        world: number of processes.
        start_step: number of batches (per process) already consumed; the stream goes on exactly there.
    """

    def __init__(
        self, num_samples: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1, start_step: int = 0
    ) -> None:
        if num_samples < 1:
            raise DataError("there are no samples to train on", hint="check data.train, data.kinds and the store")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.start_step = start_step
        self._epoch = -1
        self._order: Int[np.ndarray, " num_samples"] = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The batch of this rank at one step."""
        first = step * self.batch_size * self.world + self.rank
        positions = first + self.world * np.arange(self.batch_size, dtype=np.int64)
        epochs, places = np.divmod(positions, self.num_samples)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            indices[chosen] = self._permutation(epoch)[places[chosen]]
        return list(zip(indices.tolist(), _draws(self.seed, epochs, indices).tolist(), strict=True))

    def _permutation(self, epoch: int) -> Int[np.ndarray, " num_samples"]:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            self._epoch = epoch
        return self._order


class OnePass:
    """Every sample once, in order, for evaluation; the last batch may be smaller and no rank repeats a sample.

    Args:
        num_samples: length of the data set.
        batch_size: samples per batch and process.
        rank: this process takes samples rank, rank + world, ...
        world: number of processes.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, num_samples, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(index, 0) for index in self.indices[start : start + self.batch_size]]


def _draws(seed: int, epochs: Int[np.ndarray, " n"], indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """63-bit hashes of (seed, epoch, index)."""
    value = np.zeros(len(indices), dtype=np.uint64)
    for part in (np.full_like(indices, seed), epochs, indices):
        value = _mixed(value + np.uint64(_MIX_STEP) + part.astype(np.uint64))
    draws: Int[np.ndarray, " n"] = (value >> np.uint64(1)).astype(np.int64)
    return draws


def _mixed(value: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    mixed: Int[np.ndarray, " n"] = value ^ (value >> np.uint64(31))
    return mixed


SMALLEST_SHARE = Fraction(1, 10**6)
"""A source that is drawn more rarely is a slip of the pen, and would make the virtual epoch very long."""


class WeightedSampler:
    """Batches of (index, draw) without end in which every source has its share, a pure function of seed and position.

    The stream is cut into virtual epochs, as long as all sources together (longer, if the rarest source would not be
    drawn in one). In each of them every source comes as often as its share of the weights says, to within one sample,
    at places drawn anew. The samples of a source come in one permutation after the other, so nothing of it is repeated
    or dropped inside a pass over it; passes end anywhere, inside virtual epochs and batches. Rank r of w takes every
    w-th sample of each global batch. `draw` seeds a sample's augmentation and depends on (seed, pass, index) only.

    Args:
        sizes: number of samples of each source; sample 0 of the next source follows the last of the one before.
        weights: how often each source is drawn, relative to the others.
        batch_size: samples per batch and process.
        seed: of the places, permutations and draws.
        rank: this process.
        world: number of processes.
        start_step: number of batches (per process) already consumed; the stream goes on exactly there.

    Raises:
        DataError: a source is empty.
        ConfigError: a source is drawn less than once in a million samples.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise DataError("a source has no samples to train on", hint="check data.train, data.kinds and the store")
        exact = [Fraction(weight) for weight in weights]
        shares = [weight / sum(exact) for weight in exact]
        if min(shares) < SMALLEST_SHARE:
            raise ConfigError(
                f"the smallest share is {float(min(shares)):.2g}; a source must be drawn once in a million samples",
                where="data.weights",
            )
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.start_step = start_step
        self.epoch_length = max(sum(sizes), math.ceil(1 / min(shares)))
        self.quotas = np.array(_apportion(shares, self.epoch_length))
        self._sizes = np.array(sizes)
        self._starts = np.array([0, *accumulate(sizes)])[:-1]
        self._epoch = -1
        self._sources: Int[np.ndarray, " epoch"] = np.empty(0, dtype=np.int64)
        self._counts: Int[np.ndarray, " epoch"] = np.empty(0, dtype=np.int64)
        self._orders: dict[int, tuple[int, Int[np.ndarray, " samples"]]] = {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The batch of this rank at one step."""
        first = step * self.batch_size * self.world + self.rank
        positions = first + self.world * np.arange(self.batch_size, dtype=np.int64)
        epochs, places = np.divmod(positions, self.epoch_length)
        sources, counts = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            self._shuffle(epoch)
            sources[chosen] = self._sources[places[chosen]]
            counts[chosen] = self._counts[places[chosen]]
        passes, spots = np.divmod(epochs * self.quotas[sources] + counts, self._sizes[sources])
        indices = np.empty_like(places)
        for source, number in np.unique(np.stack([sources, passes]), axis=1).T.tolist():
            chosen = (sources == source) & (passes == number)
            indices[chosen] = self._starts[source] + self._permutation(source, number)[spots[chosen]]
        return list(zip(indices.tolist(), _draws(self.seed, passes, indices).tolist(), strict=True))

    def _shuffle(self, epoch: int) -> None:
        """Find the source at every place of a virtual epoch, and how often the epoch had that source before."""
        if epoch == self._epoch:
            return
        inside = np.repeat(np.arange(len(self.quotas)), self.quotas)
        # The number of sources is none of their numbers, so no permutation of a source has this seed.
        self._sources = np.random.default_rng([self.seed, len(self.quotas), epoch]).permutation(inside)
        before = np.array([0, *accumulate(self.quotas.tolist())])[:-1]
        self._counts = np.empty_like(inside)
        self._counts[np.argsort(self._sources, kind="stable")] = np.arange(self.epoch_length) - before[inside]
        self._epoch = epoch

    def _permutation(self, source: int, number: int) -> Int[np.ndarray, " samples"]:
        """The order of pass `number` over a source."""
        if self._orders.get(source, (-1,))[0] != number:
            generator = np.random.default_rng([self.seed, source, number])
            self._orders[source] = number, generator.permutation(int(self._sizes[source]))
        return self._orders[source][1]


def _apportion(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each less than 1 away from its share of it (largest remainders)."""
    quotas = [math.floor(share * total) for share in shares]
    remainders = [share * total - quota for share, quota in zip(shares, quotas, strict=True)]
    for number in sorted(range(len(shares)), key=lambda i: -remainders[i])[: total - sum(quotas)]:
        quotas[number] += 1
    return quotas
