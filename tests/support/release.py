"""The form of a tiny invented release of a named data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from corpora import Box


class ExpectedExample(NamedTuple):
    """One example of the store, worked out by hand from the definition of the format."""

    split: str
    id: str
    expression: str
    boxes_xyxy: tuple[Box, ...]
    """Empty: no target."""
    kind: str | None = None


class Release(NamedTuple):
    """One release."""

    write: Callable[[Path], None]
    """Writes its files into the folder of raw data."""
    expected: tuple[ExpectedExample, ...]
    """Some examples, at least one of each kind of record."""
    sizes: Mapping[str, int]
    """Split -> number of examples."""
    problems: Mapping[str, int] = {}
    """The problems that the reader should report."""
