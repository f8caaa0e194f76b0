"""Samplers: endless shuffled or weighted batches for training, one ordered pass for evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, count

import numpy as np
from jaxtyping import Int

from refcli.data.training.splitmix import fold, shift_right
from refcli.errors import ConfigError, DataError

SMALLEST_SHARE = Fraction(1, 10**6)
"""Minimum share of a source: a smaller one is probably a mistake, and would make the virtual epoch very long."""


def _stream_positions(step: int, *, batch_size: int, rank: int, world: int) -> Int[np.ndarray, " batch"]:
    """The places in the stream of samples that one rank takes at one step: every `world`-th of the global batch."""
    return (step * batch_size + np.arange(batch_size, dtype=np.int64)) * world + rank


class EndlessSampler:
    """An infinite stream of batches of (index, draw), a pure function of the seed and the batch number.

    The stream is a sequence of permutations of all samples, cut into global batches; a batch may span two epochs, so no
    sample is dropped or repeated inside an epoch. Rank r of w takes every w-th sample of each global batch. `draw`
    seeds the augmentation of a sample and depends only on (seed, epoch, index).

    Args:
        num_samples: length of the data set.
        batch_size: samples per batch and process.
        seed: of the permutations and draws.
        rank: this process.
        world: number of processes.
        start_step: number of batches (per process) already consumed; the stream continues exactly there.
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
        return map(self.batch, count(self.start_step))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The batch of this rank at one step."""
        positions = _stream_positions(step, batch_size=self.batch_size, rank=self.rank, world=self.world)
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
    """Each sample once, in order, for evaluation; the last batch may be smaller and no rank repeats a sample.

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
    state = np.zeros(len(indices), dtype=np.int64)
    for word in (seed, epochs, indices):
        state = fold(state, word)
    return shift_right(state, 1)


class WeightedSampler:
    """An infinite stream of batches of (index, draw) with weighted sources, a pure function of seed and batch number.

    The stream is cut into virtual epochs, as long as all sources together (longer if the rarest source would otherwise
    be missing). In each virtual epoch, the number of samples of a source is its share of the weights, to within one
    sample, at new random positions. The samples of a source are a sequence of permutations, so none is repeated or
    dropped inside a pass over the source; a pass may end inside a virtual epoch or batch. Rank r of w takes every w-th
    sample of each global batch. `draw` seeds the augmentation of a sample and depends only on (seed, pass, index).

    Args:
        sizes: number of samples of each source; indices of a source follow those of the source before it.
        weights: relative frequency of each source.
        batch_size: samples per batch and process.
        seed: of the positions, permutations and draws.
        rank: this process.
        world: number of processes.
        start_step: number of batches (per process) already consumed; the stream continues exactly there.

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
        return map(self.batch, count(self.start_step))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The batch of this rank at one step."""
        positions = _stream_positions(step, batch_size=self.batch_size, rank=self.rank, world=self.world)
        epochs, places = np.divmod(positions, self.epoch_length)
        sources, counts = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            self._shuffle(epoch)
            sources[chosen] = self._sources[places[chosen]]
            counts[chosen] = self._counts[places[chosen]]
        passes, offsets = np.divmod(epochs * self.quotas[sources] + counts, self._sizes[sources])
        indices = np.empty_like(places)
        for source, number in np.unique(np.stack([sources, passes]), axis=1).T.tolist():
            chosen = (sources == source) & (passes == number)
            indices[chosen] = self._starts[source] + self._permutation(source, number)[offsets[chosen]]
        return list(zip(indices.tolist(), _draws(self.seed, passes, indices).tolist(), strict=True))

    def _shuffle(self, epoch: int) -> None:
        """Draw the source at each position of a virtual epoch, and count its earlier positions in the epoch."""
        if epoch == self._epoch:
            return
        inside = np.repeat(np.arange(len(self.quotas)), self.quotas)
        # No source has the number len(quotas), so no permutation of a source has this seed.
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
    """Integers that sum to `total`, each less than 1 away from its share of it (largest remainders)."""
    quotas = [math.floor(share * total) for share in shares]
    remainders = [share * total - quota for share, quota in zip(shares, quotas, strict=True)]
    for number in sorted(range(len(shares)), key=lambda i: -remainders[i])[: total - sum(quotas)]:
        quotas[number] += 1
    return quotas
