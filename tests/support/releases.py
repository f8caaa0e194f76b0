"""A tiny invented release of every data set that is read by its name, laid out as its authors publish it."""

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


RELEASES: dict[str, Release] = {}
"""Name of the data set -> its release."""
COVERED_BY_CORPORA = frozenset(
    {"flickr30k", "grefcoco", "referit", "refcoco_google", "refcoco_plus_unc", "refcoco_unc", "refcocog_google",
     "refcocog_umd"}
)  # fmt: skip
"""Data sets whose layout is that of the corpus of their format."""
