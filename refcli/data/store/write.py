"""Writing a split of the store as a stream of tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64
from typing_extensions import Self

from refcli.contracts.example import Example
from refcli.data.store.checks import check_table
from refcli.data.store.columns import SCHEMA, examples_to_table
from refcli.errors import DataError
from refcli.files import file_sha256, is_plain_name, temporary_file

ROWS_PER_GROUP = 10_000
BYTES_PER_GROUP = 1 << 27
"""In memory, where rows are large; readers take six times as much."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split, or one part of it, holds, as listed in the manifest."""

    dataset: str
    split: str
    file: str
    """Path of the Parquet file relative to the store."""
    sha256: str
    bytes: int
    examples: int
    images: int
    """Distinct images."""
    regions: int
    masks: int
    """Regions that have a mask."""
    no_target: int
    """Examples without a region."""


class SplitWriter:
    """Writes `<out>/<dataset>/<split>.parquet` beside its place; `publish` or `list_splits` moves it there.

    Rows are checked and counted as they come and are never all in memory. Without `publish` nothing is left behind.

    Args:
        out: the store.
        dataset: name of the data set.
        split: name of the split.
        part: (number, count) if the split is written in parts: `<split>.1-of-4.parquet`.

    Raises:
        DataError: a name that no file can have, or a link where the folder of the data set should be.
    """

    def __init__(self, out: Path, dataset: str, split: str, *, part: tuple[int, int] | None = None) -> None:
        for name in (dataset, split):
            if not is_plain_name(name):
                raise DataError(
                    f"{name!r} cannot be the name of a data set or split", hint="use letters, digits and _-+."
                )
        self._out, self._dataset, self._split = Path(out), dataset, split
        self._is_part = part is not None
        suffix = f".{part[0]}-of-{part[1]}" if part else ""
        self.path = self._out / dataset / f"{split}{suffix}.parquet"
        if self.path.parent.is_symlink():
            raise DataError(
                "the folder of the data set is a link",
                where=str(self.path.parent),
                hint="move the folder itself into the store",
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.path)
        self._stack = ExitStack()
        self._unfinished = self._stack.enter_context(temporary_file(self.path))
        self._parquet = pq.ParquetWriter(self._unfinished, SCHEMA, compression="zstd")
        self.is_published = False
        self._ids: list[Int64[np.ndarray, " rows"]] = []
        self._images: set[int] = set()
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._bytes_waiting = 0
        self._examples = self._regions = self._masks = self._no_target = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self._parquet.close()

    def write(self, table: pa.Table) -> None:
        """Add rows of `SCHEMA`.

        Raises:
            DataError: see `check_table`.
        """
        if not len(table):
            return
        table = table.cast(SCHEMA)
        check_table(table, dataset=self._dataset, split=self._split)
        ids = np.fromiter(map(hash, table["id"].to_pylist()), np.int64, len(table))
        if len(np.unique(ids)) < len(ids):
            self._refuse_repeated_ids(ids, table)
        self._ids.append(ids)
        self._images.update(map(hash, pc.unique(table["image"]).to_pylist()))
        lists = table["regions"].combine_chunks()
        regions = lists.flatten()
        self._examples += len(table)
        self._regions += len(regions)
        self._masks += len(regions) - int(regions.field("mask_counts").null_count)
        self._no_target += int(pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py())
        self._waiting.append(table)
        self._num_waiting += len(table)
        self._bytes_waiting += table.nbytes
        if self._bytes_waiting >= BYTES_PER_GROUP:
            self._flush(1)
        elif self._num_waiting >= ROWS_PER_GROUP:
            self._flush(ROWS_PER_GROUP)

    def finish(self) -> SplitSummary:
        """Close the file, still beside its place.

        Raises:
            DataError: there are no rows (a part may have none), or an id occurs twice.
        """
        self._flush(1)
        self._parquet.close()
        with self._unfinished.open("rb") as file:
            os.fsync(file.fileno())
        if not self._examples and not self._is_part:
            raise DataError(
                "the split has no examples", where=f"{self._dataset}:{self._split}", hint="check the source files"
            )
        ids = np.concatenate([*self._ids, np.empty(0, np.int64)])
        if len(np.unique(ids)) < len(ids):
            self._refuse_repeated_ids(ids, pq.read_table(self._unfinished, columns=["id"]))
        return SplitSummary(
            dataset=self._dataset,
            split=self._split,
            file=self.path.relative_to(self._out).as_posix(),
            sha256=file_sha256(self._unfinished),
            bytes=self._unfinished.stat().st_size,
            examples=self._examples,
            images=len(self._images),
            regions=self._regions,
            masks=self._masks,
            no_target=self._no_target,
        )

    def publish(self, name: str | None = None) -> None:
        """Move the finished file to its place, or under another name to its folder."""
        self._unfinished.replace(self.path if name is None else self.path.with_name(name))
        self.is_published = True

    def _flush(self, multiple: int) -> None:
        """Write the rows that wait, as many as make whole multiples; the others go on waiting."""
        if not self._waiting:
            return
        whole = pa.concat_tables(self._waiting)
        num_ready = len(whole) // multiple * multiple
        if num_ready:
            fitting = int(BYTES_PER_GROUP * len(whole) / max(whole.nbytes, 1))
            num_rows = min(max(fitting, 1), ROWS_PER_GROUP)
            self._parquet.write_table(whole.slice(0, num_ready).combine_chunks(), row_group_size=num_rows)
        self._num_waiting = len(whole) - num_ready
        self._bytes_waiting = whole.slice(num_ready).nbytes
        self._waiting = [whole.slice(num_ready)] if self._num_waiting else []

    def _refuse_repeated_ids(self, ids: Int64[np.ndarray, " rows"], table: pa.Table) -> None:
        order = np.argsort(ids, kind="stable")
        second = int(order[1:][np.diff(ids[order]) == 0][0])
        raise DataError(
            "an example cannot be stored: its id occurs twice",
            where=f"{self._dataset}:{self._split} {table['id'][second].as_py()}",
        )


def has_columns_of_store(path: Path) -> bool:
    """Whether there is a Parquet file with the columns of a store."""
    try:
        return path.is_file() and set(SCHEMA.names) <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return False


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes of earlier versions have left beside a file."""
    for old in path.parent.glob(f".{path.name}.*.part"):
        number = old.name.split(".")[-2]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            old.unlink(missing_ok=True)


def write_split(out: Path, dataset: str, split: str, examples: Iterable[Example]) -> SplitSummary:
    """Write a split, atomically and without holding all examples in memory.

    The split is not listed before `write_manifest` is called with the summary.

    Raises:
        DataError: there are no examples, or one is invalid (foreign split, repeated id, blank expression, a path that
            leaves the image root, a box that is not finite and ordered, a mask of another size than the image).
    """
    return write_tables(out, dataset, split, (examples_to_table(batch) for batch in _batches(examples)))


def write_tables(out: Path, dataset: str, split: str, tables: Iterable[pa.Table]) -> SplitSummary:
    """As `write_split`, from tables of `SCHEMA`."""
    with SplitWriter(out, dataset, split) as writer:
        for table in tables:
            writer.write(table)
        summary = writer.finish()
        writer.publish()
    return summary


def _batches(examples: Iterable[Example]) -> Iterator[Sequence[Example]]:
    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == ROWS_PER_GROUP:
            yield batch
            batch = []
    if batch:
        yield batch
