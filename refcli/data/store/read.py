"""Read a store: its splits, their examples, and the paths of their images."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refcli.contracts.example import RLE, Example, Region
from refcli.data.store.checks import LEAVES_THE_ROOT, check_stored_rows
from refcli.data.store.layout import (
    ADDED,
    MANIFEST,
    REGION,
    SCHEMA,
    SIDES,
    is_complete,
    read_manifest,
    split_files,
    stored_file,
)
from refcli.errors import DataError
from refcli.tables import did_you_mean

MAX_GROUP_BYTES = 3 << 28
"""Limit on the columns of a row group in memory; ten thousand examples with detailed masks take a tenth of it."""
BATCH_BYTES = 1 << 28
_ROWS_AT_A_TIME = 1_000
_REGIONS = "regions"
_DAMAGED = (pa.ArrowException, OSError, UnicodeError, ValueError, TypeError, KeyError, IndexError, MemoryError)
"""Exceptions that pyarrow raises for files that are damaged or of another shape."""
_HINT = "it was changed after it was written; prepare the data again"


class Store:
    """A directory written by `refcli prepare-data`.

    Args:
        path: the directory that holds `manifest.json`.

    Raises:
        DataError: there is no store, or its manifest is damaged or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise DataError(
                "there is no store here",
                where=str(self.path),
                hint=f"create one, e.g. `refcli prepare-data synthetic --out {self.path}`",
            )
        self._datasets: Mapping[str, Any] = read_manifest(self.path)["datasets"]

    def names(self) -> list[str]:
        """All splits as "dataset:split", sorted."""
        return sorted(f"{dataset}:{split}" for dataset, entry in self._datasets.items() for split in entry["splits"])

    def complete_names(self) -> list[str]:
        """The splits that can be opened: all but those with missing parts."""
        return [name for name in self.names() if is_complete(self._entry(name))]

    def _entry(self, name: str) -> Mapping[str, Any]:
        dataset, split = name.rsplit(":", 1)
        entry: Mapping[str, Any] = self._datasets[dataset]["splits"][split]
        return entry

    def split(self, name: str, *, groups_kept: int | None = None) -> StoreSplit:
        """Open one split.

        Args:
            name: "dataset:split".
            groups_kept: see `StoreSplit`.

        Raises:
            DataError: no such split (the hint names the nearest), or its file is missing or differs from the manifest.
        """
        names = self.names()
        if name not in names:
            raise DataError(
                f"the store has no split {name!r}",
                where=str(self.path / MANIFEST),
                hint=did_you_mean(name, names),
            )
        entry = self._entry(name)
        files = split_files(entry, where=f"{self.path / MANIFEST}: {name}")
        return StoreSplit(
            name=name,
            files=tuple((stored_file(self.path, file["file"]), file["examples"]) for file in files),
            image_root=self.path / (entry.get("images_at") or name.rsplit(":", 1)[0]),
            groups_kept=groups_kept,
        )

    def contents(self, name: str) -> dict[str, Any]:
        """The sha256 of the files of a split and its number of examples, according to the manifest."""
        files = split_files(self._entry(name), where=f"{self.path / MANIFEST}: {name}")
        return {"sha256": [file["sha256"] for file in files], "examples": sum(file["examples"] for file in files)}

    def origin(self, name: str) -> Mapping[str, Any]:
        """The origin of a split: its source, settings and input files."""
        return dict(self._entry(name).get("origin") or {})


class StoreSplit:
    """The examples of one split, by index.

    Row groups are read and checked on first access and stay in memory as Arrow buffers. Pickling carries the paths
    only, so a worker process opens the files itself; a forked one shares the groups that its parent has loaded.

    Args:
        name: "dataset:split".
        files: (Parquet file, number of its rows), in order.
        image_root: the folder that image paths are relative to.
        groups_kept: number of most recently used row groups that stay in memory; None: all.
    """

    def __init__(
        self, *, name: str, files: Sequence[tuple[Path, int]], image_root: Path, groups_kept: int | None = None
    ) -> None:
        self.name = name
        self.groups_kept = groups_kept
        self.files = tuple(files)
        self.image_root = image_root
        self._open()

    def _open(self) -> None:
        self._places: list[tuple[Path, int]] = []
        """(file, row group) of every group."""
        sizes: list[int] = []
        for path, num_rows in self.files:
            groups = group_sizes(path, num_rows)
            self._places += [(path, number) for number in range(len(groups))]
            sizes += groups
        self._starts = [0, *accumulate(sizes)]
        self._groups: dict[int, RowReader] = {}
        """The row groups in memory; if their number is limited, the most recently used one is last."""

    @property
    def group_starts(self) -> Sequence[int]:
        """The index of the first example of every row group, and the number of all examples."""
        return tuple(self._starts)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples; {index} is out of range")
        group = bisect_right(self._starts, index) - 1
        return self._reader(group)[index - self._starts[group]]

    def _reader(self, group: int) -> RowReader:
        reader = self._groups.get(group)
        if reader is None:
            reader = self._groups[group] = self.read_group(group)
        if self.groups_kept is not None:
            self._groups[group] = self._groups.pop(group)
            if len(self._groups) > self.groups_kept:
                del self._groups[next(iter(self._groups))]
        return reader

    def load(self) -> None:
        """Read all row groups now, so that processes forked later share the memory."""
        for group in range(len(self._places)):
            self._reader(group)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, for filters over all examples at once."""
        tables = list(self.tables([name]))
        return pa.concat_tables(tables).column(name) if tables else pa.chunked_array([], SCHEMA.field(name).type)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows as tables, one row group at a time; `columns` None gives all columns."""
        for path, group in self._places:
            yield read_group(path, group, columns)

    def image_path(self, example: Example) -> Path:
        """The path of the image of an example.

        Raises:
            DataError: the path leaves the image root.
        """
        return self.path_of_image(example.image, where=example.id)

    def path_of_image(self, image: str, *, where: str) -> Path:
        """The path of an image by its value in the column "image"; `where` names its example in errors.

        Raises:
            DataError: the path leaves the image root, or is invalid.
        """
        if re.search(LEAVES_THE_ROOT, image):
            raise DataError(f"the image path {image!r} leaves the image root", where=f"{self.name}: {where}")
        return self.image_root / image

    def read_group(self, group: int) -> RowReader:
        """Read a row group without keeping it in memory.

        Raises:
            DataError: the file is damaged.
        """
        return RowReader(read_group(*self._places[group]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "files", "image_root", "groups_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def group_sizes(path: Path, num_rows: int) -> list[int]:
    """Rows of every row group of a file that must hold `num_rows` in all.

    Raises:
        DataError: the file is missing, is not a Parquet file, lacks columns or has another number of rows.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        found = int(metadata.num_rows)
    except _DAMAGED as error:
        raise _unreadable(error, str(path)) from error
    odd = [
        column
        for column in SCHEMA.names
        if schema.names.count(column) != 1 and (column not in ADDED or column in schema.names)
    ]
    if not odd and _parts(schema.field(_REGIONS)) != _parts(SCHEMA.field(_REGIONS)):
        odd = [_REGIONS]
    if odd or found != num_rows or sum(sizes) != num_rows or min(sizes, default=0) < 0:
        what = f"lacks the columns {odd}" if odd else f"has {found} rows"
        raise DataError(f"the file {what}, but the manifest lists {num_rows} examples", where=str(path), hint=_HINT)
    return sizes


def read_group(
    path: Path,
    group: int,
    columns: Sequence[str] | None = None,
    *,
    max_bytes: int = MAX_GROUP_BYTES,
    batch_bytes: int = BATCH_BYTES,
) -> pa.Table:
    """Read one row group of a file, with the types of `SCHEMA`.

    Args:
        path: the file.
        group: number of the row group.
        columns: names of columns, or of parts of regions such as "regions.list.element.x1"; None for all.
        max_bytes: limit on the memory of the row group.
        batch_bytes: limit on the memory of a column while it is read.

    Raises:
        DataError: the file is damaged, a column has another type, a value is missing, a row breaks the rules of the
            store (see `check_stored_rows`), or the row group exceeds `max_bytes`.
    """
    where = f"{path}, row group {group + 1}"
    try:
        table = _read_limited(path, group, columns, where, max_bytes, batch_bytes)
        table = table.cast(_schema_of(table))
        for name in ADDED:
            if name not in table.column_names and (columns is None or name in columns):
                table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
        table.validate(full=True)
        _refuse_nulls(table, where)
        check_stored_rows(table, where=where)
    except _DAMAGED as error:
        raise _unreadable(error, where) from error
    return table


def _read_limited(
    path: Path, group: int, columns: Sequence[str] | None, where: str, max_bytes: int, batch_bytes: int
) -> pa.Table:
    batches, size = [], 0
    with pq.ParquetFile(path, memory_map=True) as file:
        columns = list(columns or (name for name in SCHEMA.names if name in file.schema_arrow.names))
        chunks = file.metadata.row_group(group)
        largest = max(
            (chunks.column(number).total_uncompressed_size for number in range(chunks.num_columns)), default=0
        )
        # A value that many rows refer to is at most as large as its column, and is repeated in memory.
        rows = min(max(batch_bytes // max(largest, 1), 1), _ROWS_AT_A_TIME)
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > max_bytes:
                raise DataError(f"the rows take more than {max_bytes >> 20:,} MiB of memory", where=where)
        expected = chunks.num_rows
        schema = file.schema_arrow
    num_rows = sum(map(len, batches))
    if num_rows != expected:
        raise DataError(f"the row group has {num_rows} rows, but {expected} are expected", where=where, hint=_HINT)
    if not batches:
        wanted = {column.partition(".")[0] for column in columns}
        return pa.schema([field for field in schema if field.name in wanted]).empty_table()
    return pa.Table.from_batches(batches)


def _schema_of(table: pa.Table) -> pa.Schema:
    """The part of `SCHEMA` that describes the columns of a table."""
    fields = []
    for found in table.schema:
        field = SCHEMA.field(found.name)
        if found.name == _REGIONS:
            region = pa.struct([part for part in REGION if part.name in _parts(found)])
            field = field.with_type(pa.list_(pa.field("element", region, nullable=False)))
        fields.append(field)
    return pa.schema(fields)


def _parts(regions: pa.Field) -> list[str]:
    """The field names of a column of regions; none if the column holds something else."""
    kind = regions.type
    is_nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return [part.name for part in kind.value_type] if is_nested and pa.types.is_struct(kind.value_type) else []


def _refuse_nulls(table: pa.Table, where: str) -> None:
    for name in table.column_names:
        column = table.column(name)
        is_missing = not SCHEMA.field(name).nullable and column.null_count
        if name == _REGIONS and not is_missing:
            regions = column.combine_chunks().flatten()
            parts = [part for part in regions.type if not part.nullable]
            is_missing = regions.null_count or any(regions.field(part.name).null_count for part in parts)
        if is_missing:
            raise DataError(f"values of the column {name} are missing", where=where, hint=_HINT)


def _unreadable(error: BaseException, where: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("a file of the store is missing", where=where, hint="prepare the data again")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"the file cannot be read: {error.strerror}", where=where)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"this is not a complete Parquet file of a store: {reason}", where=where, hint=_HINT)


class RowReader:
    """Random access to the rows of one table of `SCHEMA`: a row becomes an Example in a few microseconds."""

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
        self._boxes = np.stack([regions.field(side).to_numpy() for side in SIDES], axis=1)
        self._masks = _Bytes(regions.field("mask_counts"))
        self._source_ids = _Bytes(regions.field("source_id"))
        self._ignored = _Bytes(_single(table, "ignored_counts"))

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
            ignored=self._mask(self._ignored, row, height, width),
        )

    def _region(self, number: int, height: int, width: int) -> Region:
        x1, y1, x2, y2 = self._boxes[number].tolist()
        return Region(
            box_xyxy=(x1, y1, x2, y2),
            mask=self._mask(self._masks, number, height, width),
            source_id=self._source_ids.optional_text(number),
        )

    @staticmethod
    def _mask(column: _Bytes, row: int, height: int, width: int) -> RLE | None:
        counts = column.optional(row)
        return None if counts is None else RLE((height, width), counts)


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
