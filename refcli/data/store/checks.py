"""The rules for the rows of a store, checked column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32

from refcli.data.store.layout import SIDES
from refcli.errors import DataError

LEAVES_THE_ROOT = r"^$|^/|(^|/)\.\.(/|$)|\x00"
"""Image paths that are empty, absolute, leave the image root, or contain a null character."""


def check_table(table: pa.Table, *, dataset: str, split: str) -> None:
    """Refuse rows that belong to another split or break a rule of the store.

    Raises:
        DataError: a foreign split, a blank expression, an image path that leaves the image root, an impossible image
            size, a box that is not finite and ordered, or a mask in an image of unknown size; names the first such row.
    """
    foreign = _flags(pc.or_(pc.not_equal(table["dataset"], dataset), pc.not_equal(table["split"], split)))
    if foreign.any():
        row = int(np.argmax(foreign))
        raise DataError(
            f"an example cannot be stored: it belongs to {table['dataset'][row].as_py()}:{table['split'][row].as_py()}",
            where=f"{dataset}:{split} {table['id'][row].as_py()}",
        )
    for is_wrong, what in _rules(table):
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise DataError(
                f"an example cannot be stored: {what(row)}", where=f"{dataset}:{split} {table['id'][row].as_py()}"
            )


def check_stored_rows(table: pa.Table, *, where: str) -> None:
    """Refuse rows of a stored file that `check_table` would have refused, as far as the given columns show it.

    Raises:
        DataError: names the first such row.
    """
    for is_wrong, what in _rules(table):
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            name = table["id"][row].as_py() if "id" in table.column_names else f"row {row + 1}"
            raise DataError(
                f"a row of the store is damaged: {what(row)}",
                where=f"{where}, {name}",
                hint="the file was changed after it was written; prepare the data again",
            )


def _rules(table: pa.Table) -> Iterator[tuple[Bool[np.ndarray, " rows"], Callable[[int], str]]]:
    """For each rule about the given columns: flags of the rows that break it, and a function that describes one."""
    names = set(table.column_names)

    def value(name: str, row: int) -> object:
        return table[name][row].as_py()

    if "expression" in names:
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["expression"])), 0)
        yield _flags(blank), lambda row: "its expression is blank"
    if "image" in names:
        leaves = pc.match_substring_regex(table["image"], LEAVES_THE_ROOT)
        yield _flags(leaves), lambda row: f"its image {value('image', row)!r} is not a path inside the image root"
    width = height = None
    if {"width", "height"} <= names:
        width, height = (table[name].to_numpy() for name in ("width", "height"))
        impossible = (width < 0) | (height < 0) | ((width == 0) != (height == 0))
        yield impossible, lambda row: f"its image has the size {value('width', row)} x {value('height', row)}"
    if "ignored_counts" in names and width is not None:
        sizeless = table["ignored_counts"].is_valid().to_numpy() & (width == 0)
        yield sizeless, lambda row: "it has an ignored region, but its image's size is unknown"
    if "regions" in names:
        yield from _rules_of_regions(table["regions"].combine_chunks(), width)


def _rules_of_regions(
    lists: pa.ListArray, width: Int32[np.ndarray, " rows"] | None
) -> Iterator[tuple[Bool[np.ndarray, " rows"], Callable[[int], str]]]:
    regions = lists.flatten()
    parts = {part.name for part in regions.type}
    owners = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
    if parts.issuperset(SIDES):
        boxes = np.stack([regions.field(side).to_numpy() for side in SIDES], axis=1)
        wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
        yield (
            _of_owners(wrong, owners, len(lists)),
            lambda row: (
                f"the box {tuple(boxes[(owners == row) & wrong][0].tolist())} is not (left, top, right, bottom)"
            ),
        )
    if "mask_counts" in parts and width is not None:
        sizeless = regions.field("mask_counts").is_valid().to_numpy(zero_copy_only=False) & (width[owners] == 0)
        yield _of_owners(sizeless, owners, len(lists)), lambda row: "it has a mask, but its image's size is unknown"


def _flags(column: pa.ChunkedArray) -> Bool[np.ndarray, " rows"]:
    return np.asarray(column.to_numpy(), dtype=np.bool_)


def _of_owners(is_wrong: Bool[np.ndarray, " regions"], owners: np.ndarray, num_rows: int) -> Bool[np.ndarray, " rows"]:
    return np.bincount(owners[is_wrong], minlength=num_rows).astype(np.bool_)
