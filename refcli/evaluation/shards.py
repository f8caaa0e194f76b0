"""Parts of a split that different processes score."""

from __future__ import annotations

from dataclasses import dataclass

from refcli.errors import UsageError


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
