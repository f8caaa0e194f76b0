"""Arrow columns as plain buffers: one row becomes an Example without converting its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from refcli.contracts.example import RLE, Example, Region
from refcli.errors import DataError

REGION = pa.struct(
    [
        pa.field("x1", pa.float64(), nullable=False),
        pa.field("y1", pa.float64(), nullable=False),
        pa.field("x2", pa.float64(), nullable=False),
        pa.field("y2", pa.float64(), nullable=False),
        pa.field("mask_counts", pa.binary()),
        pa.field("source_id", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("regions", pa.list_(pa.field("element", REGION, nullable=False)), nullable=False),
    ]
)
"""One row per Example. A mask's size is the image's (height, width), so only its run lengths are stored."""


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Rows of `SCHEMA`, column by column (several times faster than row by row).

    Raises:
        DataError: a mask is not of its image's size, which the columns could not tell.
    """
    for example in examples:
        for region in example.regions:
            if region.mask is not None and tuple(region.mask.size) != (example.height, example.width):
                raise DataError(
                    f"an example cannot be stored: a mask has the size {tuple(region.mask.size)}, "
                    f"the image {(example.height, example.width)}",
                    where=f"{example.dataset}:{example.split} {example.id}",
                )
    regions = [region for example in examples for region in example.regions]
    boxes = np.array([region.box_xyxy for region in regions], dtype=np.float64).reshape(-1, 4)
    columns = [
        *(pa.array(np.ascontiguousarray(boxes[:, side])) for side in range(4)),
        pa.array([region.mask.counts if region.mask else None for region in regions], pa.binary()),
        pa.array([region.source_id for region in regions], pa.string()),
    ]
    offsets = np.cumsum([0, *(len(example.regions) for example in examples)], dtype=np.int32)
    structs = pa.StructArray.from_arrays(columns, fields=list(REGION))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=SCHEMA.field("regions").type)
    arrays = [
        lists if field.name == "regions" else pa.array([getattr(e, field.name) for e in examples], field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


class RowReader:
    """Random access to the rows of one table of `SCHEMA`, at a few microseconds a row."""

    def __init__(self, table: pa.Table) -> None:
        table = table.cast(SCHEMA).combine_chunks()
        self._size: int = table.num_rows
        texts = ("id", "dataset", "split", "image", "image_id", "expression", "kind")
        self._texts = {name: _Bytes(_single(table, name)) for name in texts}
        self._width = _single(table, "width").to_numpy()
        self._height = _single(table, "height").to_numpy()
        lists = _single(table, "regions")
        self._region_offsets = np.asarray(lists.offsets)
        regions = lists.values
        self._boxes = np.stack([regions.field(side).to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)
        self._masks = _Bytes(regions.field("mask_counts"))
        self._source_ids = _Bytes(regions.field("source_id"))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> Example:
        text = self._texts
        height, width = int(self._height[row]), int(self._width[row])
        return Example(
            id=text["id"].text(row),
            dataset=text["dataset"].text(row),
            split=text["split"].text(row),
            image=text["image"].text(row),
            image_id=text["image_id"].text(row),
            width=width,
            height=height,
            expression=text["expression"].text(row),
            regions=tuple(
                self._region(number, height, width)
                for number in range(self._region_offsets[row], self._region_offsets[row + 1])
            ),
            kind=text["kind"].optional_text(row),
        )

    def _region(self, number: int, height: int, width: int) -> Region:
        counts = self._masks.optional(number)
        x1, y1, x2, y2 = self._boxes[number].tolist()
        return Region(
            box_xyxy=(x1, y1, x2, y2),
            mask=None if counts is None else RLE((height, width), counts),
            source_id=self._source_ids.optional_text(number),
        )


class _Bytes:
    """A string or binary column as its offsets, its bytes and its validity."""

    def __init__(self, array: pa.Array) -> None:
        _, offsets, data = array.buffers()
        first, size = array.offset, len(array)
        self._offsets = np.frombuffer(offsets, dtype=np.int32)[first : first + size + 1] if size else np.zeros(1, int)
        self._data = memoryview(data) if data is not None else memoryview(b"")
        self._valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None

    def text(self, row: int) -> str:
        return str(self._data[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def optional(self, row: int) -> bytes | None:
        if self._valid is not None and not self._valid[row]:
            return None
        return bytes(self._data[self._offsets[row] : self._offsets[row + 1]])

    def optional_text(self, row: int) -> str | None:
        value = self.optional(row)
        return None if value is None else value.decode("utf-8")


def _single(table: pa.Table, name: str) -> pa.Array:
    """A column of a table as one array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
