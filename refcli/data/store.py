"""The store: one Parquet file per split, a manifest that lists them, and the pictures beside them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refcli.contracts.example import Example
from refcli.data.columns import SCHEMA, RowReader
from refcli.data.store_writing import (
    MANIFEST,
    STORE_SCHEMA,
    SplitSummary,
    read_manifest,
    write_manifest,
    write_split,
)
from refcli.errors import DataError
from refcli.tables import nearest

__all__ = ["MANIFEST", "STORE_SCHEMA", "SplitSummary", "Store", "StoreSplit", "write_manifest", "write_split"]


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
                hint=f"make one, e.g. `refcli prepare-data synthetic --out {self.path}`",
            )
        self._datasets: Mapping[str, Any] = read_manifest(self.path)["datasets"]

    def names(self) -> list[str]:
        """All splits as "dataset:split", sorted."""
        return sorted(f"{dataset}:{split}" for dataset, entry in self._datasets.items() for split in entry["splits"])

    def split(self, name: str) -> StoreSplit:
        """Open one split.

        Args:
            name: "dataset:split".

        Raises:
            DataError: no such split (the hint names the nearest), or its file is missing or not the one listed.
        """
        names = self.names()
        if name not in names:
            guess = nearest(name, names)
            raise DataError(
                f"the store has no split {name!r}",
                where=str(self.path / MANIFEST),
                hint=(f"did you mean {guess!r}? " if guess else "") + "known: " + (", ".join(names) or "none"),
            )
        dataset, split = name.rsplit(":", 1)
        entry = self._datasets[dataset]
        return StoreSplit(
            name=name,
            path=self.path / entry["splits"][split]["file"],
            image_root=self.path / (entry.get("images") or dataset),
            num_examples=entry["splits"][split]["examples"],
        )


class StoreSplit:
    """The examples of one split, by index.

    Row groups are read when they are first touched and stay in memory as Arrow buffers. Pickling carries the path
    only, so a worker process opens the file for itself; a forked one shares what its parent has loaded.
    """

    def __init__(self, *, name: str, path: Path, image_root: Path, num_examples: int) -> None:
        self.name = name
        self.path = path
        self.image_root = image_root
        self._num_examples = num_examples
        self._open()

    def _open(self) -> None:
        try:
            metadata = pq.read_metadata(self.path)
        except FileNotFoundError as error:
            raise DataError(
                "a file of the store is missing", where=str(self.path), hint="prepare the data again"
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"this is not a whole Parquet file: {error}", where=str(self.path)) from error
        missing = [column for column in SCHEMA.names if column not in metadata.schema.to_arrow_schema().names]
        if missing or metadata.num_rows != self._num_examples:
            what = f"lacks the columns {missing}" if missing else f"has {metadata.num_rows} rows"
            raise DataError(
                f"the file {what}, but the manifest lists {self._num_examples} examples",
                where=str(self.path),
                hint="it was changed after it was written; prepare the data again",
            )
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = [0, *accumulate(sizes)]
        self._groups: list[RowReader | None] = [None] * metadata.num_row_groups

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"{self.name} has {self._num_examples} examples; there is no number {index}")
        group = bisect_right(self._starts, index) - 1
        reader = self._groups[group] or self._read_group(group)
        return reader[index - self._starts[group]]

    def load(self) -> None:
        """Read every row group now, so that processes forked later share the memory."""
        for group, reader in enumerate(self._groups):
            if reader is None:
                self._read_group(group)

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column, for filters over all examples at once."""
        return pq.read_table(self.path, columns=[name], memory_map=True).column(name)

    def image_path(self, example: Example) -> Path:
        """Where the picture of an example lies.

        Raises:
            DataError: the example names a place outside the image root.
        """
        if example.image.startswith("/") or ".." in example.image.split("/"):
            raise DataError(
                f"the image path {example.image!r} leaves the image root", where=f"{self.path}: {example.id}"
            )
        return self.image_root / example.image

    def _read_group(self, group: int) -> RowReader:
        with pq.ParquetFile(self.path, memory_map=True) as file:
            reader = RowReader(file.read_row_group(group, columns=SCHEMA.names, use_threads=False))
        self._groups[group] = reader
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "path": self.path, "image_root": self.image_root, "num": self._num_examples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.path, self.image_root = state["name"], state["path"], state["image_root"]
        self._num_examples = state["num"]
        self._open()
