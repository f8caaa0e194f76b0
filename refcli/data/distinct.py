"""A counter of distinct values that keeps eight bytes for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

_MOST_WAITING = 1 << 16
"""Number of new hashes to collect before merging them with the others."""


class DistinctCounter:
    """The number of different values, by their hashes."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._known: Int64[np.ndarray, " values"] = np.zeros(0, dtype=np.int64)
        self._waiting = array("q")
        self.update(values)

    def update(self, values: Iterable[str]) -> None:
        """Add values."""
        self._waiting.extend(map(hash, values))
        if len(self._waiting) >= _MOST_WAITING:
            self._merge()

    def __len__(self) -> int:
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        if self._waiting:
            self._known = np.union1d(self._known, np.frombuffer(self._waiting, dtype=np.int64))
            self._waiting = array("q")
