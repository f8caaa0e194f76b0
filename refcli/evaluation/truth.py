"""The truth of a split, row by row, without ever holding the whole of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from refcli.contracts.example import Example
from refcli.data.store.read import RowReader, StoreSplit
from refcli.errors import UsageError

GROUPS_KEPT = 4
"""Row groups in memory at a time; a store has at most 10,000 examples in each."""


class Split(Protocol):
    """Examples with images: what evaluation needs of a store's split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def image_path(self, example: Example, /) -> Path:
        """Where the example's image lies."""
        ...


class PassingSplit:
    """A store's split of which only the row groups touched last stay in memory.

    Args:
        split: the split.
        groups_kept: how many row groups stay.
    """

    def __init__(self, split: StoreSplit, *, groups_kept: int = GROUPS_KEPT) -> None:
        self._split = split
        self._groups_kept = groups_kept
        self._starts = split.group_starts
        self._recent: OrderedDict[int, RowReader] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index} in {self._split.name}")
        group = bisect_right(self._starts, index) - 1
        return self._reader(group)[index - self._starts[group]]

    def image_path(self, example: Example) -> Path:
        """Where the example's image lies."""
        return self._split.image_path(example)

    def row_index(self) -> RowIndex:
        """Where each example is, by its id."""
        parts = [table["id"].to_pylist() for table in self._split.tables(["id"])]
        return RowIndex(np.concatenate([_hashes(ids) for ids in parts]) if parts else np.empty(0, np.int64))

    def _reader(self, group: int) -> RowReader:
        if group not in self._recent:
            self._recent[group] = self._split.read_group(group)
            if len(self._recent) > self._groups_kept:
                self._recent.popitem(last=False)
        self._recent.move_to_end(group)
        return self._recent[group]


class RowIndex:
    """Rows by id, in sixteen bytes per row: the hashes are kept, not the ids.

    Args:
        hashes: Python's hash of the id of every row.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def candidates(self, ident: str) -> list[int]:
        """Rows whose id has the same hash: the one that is meant, and hardly ever another."""
        first, last = np.searchsorted(self._sorted, hash(ident)), np.searchsorted(self._sorted, hash(ident), "right")
        rows: list[int] = self._order[first:last].tolist()
        return rows


def _hashes(ids: list[str]) -> np.ndarray:
    return np.fromiter(map(hash, ids), np.int64, len(ids))


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `total`."""

    number: int = 1
    total: int = 1

    def rows(self, size: int) -> range:
        """The part's rows of `size`: neighbours stay together, and the parts' sizes differ by one at most."""
        return range((self.number - 1) * size // self.total, self.number * size // self.total)


def parse_shard(text: str) -> Shard:
    """`I/N` as a shard.

    Raises:
        UsageError: it is not two whole numbers with 1 <= I <= N.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError("a shard is I/N with 1 <= I <= N", where=f"--shard {text}", hint="e.g. --shard 1/4")
    return Shard(int(number), int(count))
