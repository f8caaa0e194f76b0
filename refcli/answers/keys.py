"""The keys by which the answers of a file are joined to the examples of a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from refcli.data.sources.rows import comparable_id

KeyRule: TypeAlias = Literal["id", "own id"]
"""What a key is: the id of the example, or this id without the name of the data set, as the benchmark counts it."""


def comparable_key(*parts: int | str) -> str:
    """A benchmark's own id, or several in a row: "000017", 17 and "17.0" are the same."""
    return "/".join(str(comparable_id(part)) for part in parts)


def own_key(example_id: str) -> str:
    """The key of an example with a benchmark's own id: its id is `dataset/own`, and for D-cube
    `dataset/image/description`."""
    return comparable_key(*example_id.split("/")[1:])


def whole_key(example_id: str) -> str:
    """The key of an example with its id in the store."""
    return example_id


KEY_RULES: Mapping[KeyRule, Callable[[str], str]] = {"id": whole_key, "own id": own_key}
"""Rule -> the key of an example from its id."""
