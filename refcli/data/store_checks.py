"""What every row of the store must satisfy, checked column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from refcli.errors import DataError

LEAVES_THE_ROOT = r"^$|^/|(^|/)\.\.(/|$)|\x00"
"""Image paths that are empty, absolute, climb out of the image root, or that no system takes."""


def check_table(table: pa.Table, *, dataset: str, split: str) -> None:
    """Refuse rows that do not belong into a split or that nothing could be done with.

    Raises:
        DataError: a foreign split, a blank expression, an image path that leaves the image root, an impossible image
            size, a box that is not finite and ordered, or a mask in an image of unknown size; the first such row is
            named.
    """
    for is_wrong, what in _rules(table, dataset, split):
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise DataError(
                f"an example cannot be stored: {what(row)}", where=f"{dataset}:{split} {table['id'][row].as_py()}"
            )


def _rules(
    table: pa.Table, dataset: str, split: str
) -> Iterator[tuple[Bool[np.ndarray, " rows"], Callable[[int], str]]]:
    def value(name: str, row: int) -> object:
        return table[name][row].as_py()

    foreign = pc.or_(pc.not_equal(table["dataset"], dataset), pc.not_equal(table["split"], split))
    yield _flags(foreign), lambda row: f"it belongs to {value('dataset', row)}:{value('split', row)}"
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["expression"])), 0)
    yield _flags(blank), lambda row: "its expression is blank"
    leaves = pc.match_substring_regex(table["image"], LEAVES_THE_ROOT)
    yield _flags(leaves), lambda row: f"its image {value('image', row)!r} is not a path inside the image root"
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    impossible = (width < 0) | (height < 0) | ((width == 0) != (height == 0))
    yield impossible, lambda row: f"its image has the size {value('width', row)} x {value('height', row)}"
    lists = table["regions"].combine_chunks()
    regions = lists.flatten()
    owners = np.repeat(np.arange(len(table)), pc.list_value_length(lists).to_numpy())
    boxes = np.stack([regions.field(side).to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    yield (
        _of_owners(wrong, owners, len(table)),
        lambda row: f"the box {tuple(boxes[(owners == row) & wrong][0].tolist())} is not (left, top, right, bottom)",
    )
    sizeless = regions.field("mask_counts").is_valid().to_numpy(zero_copy_only=False) & (width[owners] == 0)
    yield _of_owners(sizeless, owners, len(table)), lambda row: "it has a mask, but its image's size is unknown"


def _flags(column: pa.ChunkedArray) -> Bool[np.ndarray, " rows"]:
    return np.asarray(column.to_numpy(), dtype=np.bool_)


def _of_owners(is_wrong: Bool[np.ndarray, " regions"], owners: np.ndarray, num_rows: int) -> Bool[np.ndarray, " rows"]:
    return np.bincount(owners[is_wrong], minlength=num_rows).astype(np.bool_)
