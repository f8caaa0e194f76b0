"""Fast scalar draws from a numpy generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

import numpy as np

T = TypeVar("T")

BLOCK = 192
"""Number of uniform numbers drawn at once: one numpy call per number would take ten times as long."""


def generator(seed: int, split: str, index: int, attempt: int, purpose: str) -> np.random.Generator:
    """The independent random stream of one purpose in one synthetic scene.

    The purposes are "layout", "language" and "picture"; they are part of the seed and must not change.
    """
    entropy = [seed, crc32(split.encode()), index, attempt, crc32(purpose.encode())]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def stream(seed: int, name: str) -> np.random.Generator:
    """The independent random stream of a name, such as an image's key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, crc32(name.encode())])))


class Dice:
    """Scalar random draws from one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._values: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._values:
            self._values = self._rng.random(BLOCK).tolist()
        return self._values.pop()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """An integer in low..high, both inclusive."""
        return low + int(self.unit() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, with a probability in proportion to its weight."""
        point = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            point -= weight
            if point < 0:
                return item
        return items[-1]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        rest = list(items)
        return [rest.pop(int(self.unit() * len(rest))) for _ in range(min(count, len(rest)))]
