"""The form of a small release of one format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 100, 80
"""Of every image."""
DATASET = "tiny"
"""Name of the data sets; also the prefix of the keys of images of unknown origin."""
Box = tuple[float, float, float, float]


class Truth(NamedTuple):
    """One expected example of the store, by the definition of the format."""

    id: str
    split: str
    expression: str
    image_id: str
    boxes_xyxy: tuple[Box, ...]
    mask_areas: tuple[float | None, ...]
    """Pixels; None where a region has no mask."""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    """Of the image; (0, 0) if the format does not state it."""


class Corpus(NamedTuple):
    """One release."""

    write: Callable[[Path], Path]
    """Writes the files into a folder; returns the main one."""
    num_expressions: int
    families: frozenset[str]
    """Prefixes of its image keys."""
    problems: Mapping[str, int]
    """The problems that the reader should report."""
    truth: Truth
    settings: Mapping[str, str] = {}
    """Settings of the source that have no default."""
