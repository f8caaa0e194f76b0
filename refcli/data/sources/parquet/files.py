"""The Parquet files of a data set: their splits, their columns, and their rows in small batches."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refcli.errors import DataError

MAGIC = b"PAR1"
SUFFIX = ".parquet"
ROWS_AT_A_TIME = 1_000
MAX_BATCH_BYTES = 1 << 28
"""Limit on a batch of rows that are decoded to Python values, which take several times as much."""
MAX_BINARY_BYTES = 1 << 30
"""Limit on a batch of rows of which only bytes are used; also bounds the texts that a batch may repeat."""
MAX_VALUES = 1 << 28
"""Limit on the values of a column in a row group: a few bytes can stand for a list of any length."""
DAMAGED = (pa.ArrowException, OSError, UnicodeError, ValueError, TypeError, KeyError, IndexError, MemoryError)
"""Exceptions that pyarrow raises for damaged files."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})(?:-[0-9a-f]{16})?")
"""The Hub's names of the files of a split, without the suffix."""


class RowBatch(NamedTuple):
    """Some rows of a file."""

    group: int
    """The row group."""
    start: int
    """Number of the first row, within the row group."""
    number: int
    """Number of the first row within the file, from 1."""
    rows: Sequence[dict[str, Any] | DataError]
    """The rows; an error in the place of one that cannot be decoded."""


@dataclass(frozen=True)
class ParquetFile:
    """One file."""

    path: Path

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        try:
            if not self.path.is_file():
                raise ValueError("it is not a regular file")
            return pq.read_metadata(self.path)
        except DAMAGED as error:
            raise _unreadable(error, self.path) from error

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns.

        Raises:
            DataError: this is not a Parquet file, or it is truncated or damaged.
        """
        try:
            schema = self._metadata.schema.to_arrow_schema()
        except DAMAGED as error:
            raise _unreadable(error, self.path) from error
        repeated = [name for name in schema.names if schema.names.count(name) > 1]
        if repeated:
            raise DataError(f"two columns have the name {repeated[0]!r}", where=str(self.path))
        return schema

    @property
    def num_rows(self) -> int:
        """The rows of all row groups."""
        return int(self._metadata.num_rows)

    def has_nulls(self, leaf: str) -> bool:
        """Whether a column may hold nulls; `leaf` is its path, such as `image.bytes`."""
        for chunks in map(self._metadata.row_group, range(self._metadata.num_row_groups)):
            for chunk in map(chunks.column, range(chunks.num_columns)):
                facts = chunk.statistics if chunk.path_in_schema == leaf else None
                if chunk.path_in_schema == leaf and (facts is None or not facts.has_null_count or facts.null_count):
                    return True
        return False

    def batches(self, columns: Sequence[str], *, max_rows: int = ROWS_AT_A_TIME) -> Iterator[RowBatch]:
        """Yield the rows in file order, decoded to plain Python values.

        Args:
            columns: top-level columns, or parts of them such as `image.path`.
            max_rows: of a batch; large values make batches smaller.

        Raises:
            DataError: the file is damaged, or a batch exceeds the limits.
        """
        number = 1
        for group in range(self._metadata.num_row_groups):
            start = 0
            for batch in self.arrow_batches(group, columns, max_rows=max_rows, max_bytes=MAX_BATCH_BYTES):
                yield RowBatch(group, start, number, _decoded(batch, self.path, number))
                start += len(batch)
                number += len(batch)

    def arrow_batches(
        self,
        group: int,
        columns: Sequence[str],
        *,
        max_rows: int = ROWS_AT_A_TIME,
        max_bytes: int = MAX_BINARY_BYTES,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one row group; see `batches`."""
        where = f"{self.path}, row group {group + 1}"
        try:
            texts = [name for name in columns if name in self.schema.names and is_text(self.schema.field(name).type)]
            rows = min(_rows_that_fit(self._metadata.row_group(group), columns, texts, where), max_rows)
            with pq.ParquetFile(self.path, memory_map=True, read_dictionary=texts) as file:
                for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
                    size = batch.nbytes + sum(map(_decoded_bytes, batch.columns))
                    if size > max_bytes:
                        raise DataError(f"{len(batch)} rows take {size:,} bytes", where=where)
                    yield batch
        except DAMAGED as error:
            raise _unreadable(error, where) from error


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, each by itself or as the numbers of a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _rows_that_fit(chunks: pq.RowGroupMetaData, columns: Sequence[str], texts: Sequence[str], where: str) -> int:
    """The rows of a batch.

    A value that many rows refer to is at most as large as its column, but repeated in memory. Columns of texts, which
    are read as dictionaries, repeat nothing until they are decoded.
    """
    largest = 1
    for chunk in map(chunks.column, range(chunks.num_columns)):
        if not any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            continue
        if chunk.num_values > MAX_VALUES:
            raise DataError(f"the column {chunk.path_in_schema} has {chunk.num_values:,} values", where=where)
        if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema not in texts:
            largest = max(largest, chunk.total_uncompressed_size)
    return max(MAX_BINARY_BYTES // largest, 1)


def _decoded_bytes(column: pa.Array) -> int:
    """The bytes that the texts of a dictionary column take when each row has its own."""
    if not (pa.types.is_dictionary(column.type) and is_text(column.type)):
        return 0
    return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every text by itself, which is decoded faster."""
    columns = [
        one.dictionary_decode() if pa.types.is_dictionary(one.type) and is_text(one.type) else one
        for one in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _decoded(batch: pa.RecordBatch, path: Path, number: int) -> list[dict[str, Any] | DataError]:
    batch = _without_dictionaries(batch)
    try:
        batch.validate(full=True)
        return list(batch.to_pylist())
    except DAMAGED:
        return [_decoded_row(batch.slice(row, 1), f"{path.name}: row {number + row}") for row in range(len(batch))]


def _decoded_row(row: pa.RecordBatch, where: str) -> dict[str, Any] | DataError:
    try:
        row.validate(full=True)
        values: dict[str, Any] = row.to_pylist()[0]
    except DAMAGED as error:
        return DataError(f"the row cannot be decoded: {_first_line(error)}", where=where)
    return values


def list_parquet(place: Path) -> list[Path]:
    """A Parquet file, or those of a folder and the folders below it, in the order of their names.

    Raises:
        DataError: there is none, or parts of a split are missing (`val-00000-of-00002.parquet` without the other).
    """
    if not place.is_dir():
        return [place]
    files = sorted(path for path in place.rglob(f"*{SUFFIX}") if not _is_hidden(path.relative_to(place)))
    if not files:
        raise DataError("the folder holds no Parquet file", where=str(place), hint=f"their names end in {SUFFIX}")
    numbers: defaultdict[tuple[Path, str, int], set[int]] = defaultdict(set)
    for path in files:
        if name := _SHARD.fullmatch(path.stem):
            numbers[path.parent, name["split"], int(name["total"])].add(int(name["number"]))
    for (folder, split, total), found in numbers.items():
        missing = next((number for number in range(total) if number not in found), None)
        if missing is not None:
            raise DataError(
                f"{split} has {len(found)} of its {total} files",
                where=str(folder / f"{split}-{missing:05d}-of-{total:05d}{SUFFIX}"),
                hint="download the missing files too",
            )
    return files


def split_of(file: Path) -> str | None:
    """The split in the Hub's name of a file, `<split>-00000-of-00002.parquet`; None for other names."""
    name = _SHARD.fullmatch(file.name.removesuffix(SUFFIX))
    return name["split"] if name else None


def is_parquet(place: Path) -> bool:
    """Whether this is a Parquet file with a beginning and an end, or a folder with a file of that suffix in it or
    below it."""
    if place.is_dir():
        return any(not _is_hidden(path.relative_to(place)) for path in place.rglob(f"*{SUFFIX}"))
    try:
        with place.open("rb") as file:
            start = file.read(2 * len(MAGIC))
            file.seek(-len(MAGIC), os.SEEK_END)
            return start.startswith(MAGIC) and start != MAGIC and file.read() == MAGIC
    except OSError:
        return False


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]


def _unreadable(error: BaseException, where: str | Path) -> DataError:
    return DataError(
        f"the Parquet file cannot be read: {_first_line(error)}",
        where=str(where),
        hint="it may be truncated; copy or download it again",
    )
