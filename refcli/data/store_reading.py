"""Reading the Parquet files of a store: every row group is checked where it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refcli.data.columns import REGION, SCHEMA
from refcli.data.store_checks import check_stored_rows
from refcli.errors import DataError

MAX_GROUP_BYTES = 3 << 28
"""Of the columns in memory; ten thousand examples with detailed masks take a tenth of it."""
_BATCH_BYTES = 1 << 28
_ROWS_AT_A_TIME = 1_000
_REGIONS = "regions"
_DAMAGED = (pa.ArrowException, OSError, UnicodeError, ValueError, TypeError, KeyError, IndexError, MemoryError)
"""What pyarrow raises for files that are damaged or of another shape."""
_HINT = "it was changed after it was written; prepare the data again"


def group_sizes(path: Path, num_rows: int) -> list[int]:
    """Rows of every row group of a file that must hold `num_rows` in all.

    Raises:
        DataError: the file is missing, is no Parquet file, lacks columns or does not hold as many rows.
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
    odd = [column for column in SCHEMA.names if schema.names.count(column) != 1]
    if not odd and _parts(schema.field(_REGIONS)) != _parts(SCHEMA.field(_REGIONS)):
        odd = [_REGIONS]
    if odd or found != num_rows or sum(sizes) != num_rows or min(sizes, default=0) < 0:
        what = f"lacks the columns {odd}" if odd else f"has {found} rows"
        raise DataError(f"the file {what}, but the manifest lists {num_rows} examples", where=str(path), hint=_HINT)
    return sizes


def read_group(path: Path, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of a file, with the types of `SCHEMA`.

    Args:
        path: the file.
        group: number of the row group.
        columns: names of columns, or of parts of regions such as "regions.list.element.x1"; None for all.

    Raises:
        DataError: the file is damaged, a column has another type, a value is missing, or a row could not have been
            stored; see `check_stored_rows`.
    """
    where = f"{path}, row group {group + 1}"
    try:
        table = _read_limited(path, group, list(columns or SCHEMA.names), where)
        table = table.cast(_schema_of(table))
        table.validate(full=True)
        _refuse_nulls(table, where)
        check_stored_rows(table, where=where)
    except _DAMAGED as error:
        raise _unreadable(error, where) from error
    return table


def _read_limited(path: Path, group: int, columns: list[str], where: str) -> pa.Table:
    batches, size = [], 0
    with pq.ParquetFile(path, memory_map=True) as file:
        chunks = file.metadata.row_group(group)
        largest = max(
            (chunks.column(number).total_uncompressed_size for number in range(chunks.num_columns)), default=0
        )
        # a value that many rows refer to is at most as large as its column, and is repeated in memory
        rows = min(max(_BATCH_BYTES // max(largest, 1), 1), _ROWS_AT_A_TIME)
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_GROUP_BYTES:
                raise DataError(f"the rows take more than {MAX_GROUP_BYTES >> 20:,} MiB of memory", where=where)
        expected = chunks.num_rows
        schema = file.schema_arrow
    num_rows = sum(map(len, batches))
    if num_rows != expected:
        raise DataError(f"the row group has {num_rows} rows, {expected} are expected", where=where, hint=_HINT)
    if not batches:
        wanted = {column.partition(".")[0] for column in columns}
        return pa.schema([field for field in schema if field.name in wanted]).empty_table()
    return pa.Table.from_batches(batches)


def _schema_of(table: pa.Table) -> pa.Schema:
    """The part of `SCHEMA` that the columns of a table are."""
    fields = []
    for found in table.schema:
        field = SCHEMA.field(found.name)
        if found.name == _REGIONS:
            region = pa.struct([part for part in REGION if part.name in _parts(found)])
            field = field.with_type(pa.list_(pa.field("element", region, nullable=False)))
        fields.append(field)
    return pa.schema(fields)


def _parts(regions: pa.Field) -> list[str]:
    """The names of the fields of a column of regions; none if it holds something else."""
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
    return DataError(f"this is not a whole Parquet file of a store: {reason}", where=where, hint=_HINT)
