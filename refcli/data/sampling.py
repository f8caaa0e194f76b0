"""Which samples make up a batch: endless shuffled epochs for training, one ordered pass for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from refcli.errors import DataError

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
