"""A shard: one of several runs that share the work on one data set."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from refcli.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `total`; the default is everything."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N`, as given to `--shard`.

        Raises:
            UsageError: the text is not two whole numbers with 1 <= I <= N.
        """
        number, slash, total = text.partition("/")
        if not (slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            raise UsageError("a shard is I/N with 1 <= I <= N", where=f"--shard {text}", hint="e.g. --shard 1/4")
        return cls(int(number), int(total))

    def rows(self, size: int) -> range:
        """This shard's rows of `size`: contiguous; the sizes of the shards differ by one at most."""
        return range((self.number - 1) * size // self.total, self.number * size // self.total)

    def holds(self, key: str) -> bool:
        """Whether this shard holds the item with a key; the assignment depends on nothing else."""
        return zlib.crc32(key.encode()) % self.total == self.number - 1
