"""Statistics of a split: counts, and histograms of its texts, boxes and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from refcli.data.store.layout import SIDES
from refcli.data.store.read import StoreSplit

WORDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 21, 31)
NUM_REGIONS = (0, 1, 2, 3, 4, 5, 6, 11)
NUM_EXPRESSIONS = (1, 2, 3, 4, 5, 6, 11, 21, 51)
AREA = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
SIDE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_COLUMNS = ("image", "width", "height", "expression", "kind", "regions", "ignored_counts")


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: start <= value < stop; the last bin of a share includes its stop, 1."""

    start: float
    stop: float | None
    """None: there is no upper limit."""
    count: int


@dataclass(frozen=True)
class Distribution:
    """Distribution of one quantity; the figures are None if there are no values."""

    count: int
    """Number of values."""
    smallest: float | None
    median: float | None
    mean: float | None
    largest: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split."""

    name: str
    """ "dataset:split"."""
    images: int
    """Distinct images."""
    expressions: int
    regions: int
    masks: int
    """Regions that have a mask."""
    no_target: int
    """Expressions without a target in their image."""
    unknown_size: int
    """Expressions on images of unknown size; the distributions do not include their boxes."""
    ignored: int
    """Expressions with pixels that no mask metric counts."""
    kinds: Mapping[str, int]
    """Expressions of each kind, the most frequent first; expressions without a kind are not counted."""
    expression_words: Distribution
    """Words of an expression, separated by white space."""
    box_area_share: Distribution
    """Share of the image's area that a box covers, 0..1; parts outside the image do not count."""
    box_side_share: Distribution
    """The square root of `box_area_share`: the relative side length if box and image were squares."""
    regions_per_expression: Distribution
    expressions_per_image: Distribution


def split_statistics(split: StoreSplit) -> SplitStatistics:
    """Compute the statistics of a split from its columns, one row group at a time.

    Raises:
        DataError: a file of the split is damaged.
    """
    words: list[Int64[np.ndarray, " rows"]] = []
    num_regions: list[Int64[np.ndarray, " rows"]] = []
    shares: list[Float64[np.ndarray, " boxes"]] = []
    images: list[pa.Array] = []
    kinds: Counter[str] = Counter()
    masks = unknown_size = ignored = 0
    for table in split.tables(_COLUMNS):
        words.append(_num_words(table["expression"]))
        width, height = (table[side].to_numpy() for side in ("width", "height"))
        unknown_size += int(((width == 0) | (height == 0)).sum())
        in_group, regions = _regions(table)
        num_regions.append(in_group)
        masks += len(regions) - regions.field("mask_counts").null_count
        shares.append(_area_shares(regions, np.repeat(width, in_group), np.repeat(height, in_group)))
        images += table["image"].chunks
        ignored += len(table) - table["ignored_counts"].null_count
        kinds.update(_value_counts(table["kind"]))
    per_image = pc.value_counts(pa.chunked_array(images, pa.string())).field("counts").to_numpy()
    of_rows, of_boxes = _joined(num_regions, np.int64), _joined(shares, np.float64)
    return SplitStatistics(
        name=split.name,
        images=len(per_image),
        expressions=len(split),
        regions=int(of_rows.sum()),
        masks=masks,
        no_target=int((of_rows == 0).sum()),
        unknown_size=unknown_size,
        ignored=ignored,
        kinds=dict(kinds.most_common()),
        expression_words=distribution(_joined(words, np.int64), WORDS),
        box_area_share=distribution(of_boxes, AREA, top=1.0),
        box_side_share=distribution(np.sqrt(of_boxes), SIDE, top=1.0),
        regions_per_expression=distribution(of_rows, NUM_REGIONS),
        expressions_per_image=distribution(per_image, NUM_EXPRESSIONS),
    )


def distribution(values: np.ndarray, starts: Sequence[float], *, top: float | None = None) -> Distribution:
    """Summary figures and histogram of values.

    Args:
        values: numbers, none below the first of `starts` or above `top`.
        starts: lower limits of the bins, ascending.
        top: the greatest possible value, which the last bin includes; None for no upper limit.
    """
    counts = np.bincount(np.searchsorted(starts, values, side="right") - 1, minlength=len(starts))
    stops = (*starts[1:], top)
    bins = tuple(Bin(start, stop, int(count)) for start, stop, count in zip(starts, stops, counts, strict=True))
    if not len(values):
        return Distribution(0, None, None, None, None, bins)
    smallest, median, mean, largest = (float(figure(values)) for figure in (np.min, np.median, np.mean, np.max))
    return Distribution(len(values), smallest, median, mean, largest, bins)


def _num_words(expressions: pa.ChunkedArray) -> Int64[np.ndarray, " rows"]:
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(expressions))
    lengths: Int64[np.ndarray, " rows"] = pc.list_value_length(words).to_numpy().astype(np.int64)
    return lengths


def _regions(table: pa.Table) -> tuple[Int64[np.ndarray, " rows"], pa.StructArray]:
    """The number of regions of each row, and the regions of all rows in order."""
    lists = table["regions"].combine_chunks()
    return pc.list_value_length(lists).to_numpy().astype(np.int64), lists.flatten()


def _area_shares(
    regions: pa.StructArray, width: Int64[np.ndarray, " regions"], height: Int64[np.ndarray, " regions"]
) -> Float64[np.ndarray, " known"]:
    """Share of its image that each box covers, for images of known size."""
    is_known = (width > 0) & (height > 0)
    width, height = width[is_known].astype(np.float64), height[is_known].astype(np.float64)
    left, top, right, bottom = (regions.field(side).to_numpy()[is_known] for side in SIDES)
    across = np.maximum(np.minimum(right, width) - np.maximum(left, 0.0), 0.0)
    down = np.maximum(np.minimum(bottom, height) - np.maximum(top, 0.0), 0.0)
    shares: Float64[np.ndarray, " known"] = (across / width) * (down / height)
    return shares


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each text occurs; nulls are not counted."""
    found = pc.value_counts(column.drop_null())
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _joined(parts: Sequence[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0, kind)])
