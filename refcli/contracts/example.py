"""The canonical record: one expression about one image, and the regions it refers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class RLE(NamedTuple):
    """A compressed COCO run-length mask: column-major, first run zeros."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    counts: bytes


@dataclass(frozen=True, slots=True)
class Region:
    """One referred object, in pixels of the stored image: 0-based, continuous, half-open."""

    box_xyxy: tuple[float, float, float, float]
    mask: RLE | None = None
    source_id: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One (image, expression) pair; `regions == ()` means that the expression has no target in the image."""

    id: str
    dataset: str
    split: str
    image: str
    """Path relative to the store's image root."""
    image_id: str
    width: int
    height: int
    expression: str
    regions: tuple[Region, ...]
    kind: str | None = None
    """The kind of expression (attribute, ordinal, ...), where the source states it; metrics are sliced by it."""
    ignored: RLE | None = None
    """Pixels that no mask metric counts, neither as truth nor as answer (ReasonSeg's "ignore"); None: all count."""
