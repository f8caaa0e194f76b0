"""Write splits as streams of tables, and list them in the manifest of a store."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from jaxtyping import Int64
from typing_extensions import Self

from refcli.contracts.example import Example
from refcli.data.distinct import DistinctCounter
from refcli.data.shard import Shard
from refcli.data.store.checks import check_table
from refcli.data.store.layout import (
    ADDED,
    MANIFEST,
    SCHEMA,
    STORE_SCHEMA,
    examples_to_table,
    file_entries,
    read_manifest,
)
from refcli.errors import DataError
from refcli.files import file_sha256, is_plain_name, path_inside, temporary_file, write_atomically

ROWS_PER_GROUP = 10_000
BYTES_PER_GROUP = 1 << 27
"""Limit on the size of a row group in memory; readers need six times as much."""
COUNTED = ("examples", "images", "regions", "masks", "no_target")
"""Counts of a split that are the sums of those of its parts (an image is in one part only)."""
_INTERIM = re.compile(r"(.+)\.[0-9a-f]{16}\.parquet")
"""Temporary name of a file that replaces a listed one, until the manifest lists it."""


@dataclass(frozen=True)
class SplitSummary:
    """The contents of a split, or of one part of it, as listed in the manifest."""

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
    """Writes `<out>/<dataset>/<split>.parquet` under a temporary name; `publish` or `list_splits` renames it.

    Rows are checked and counted as they arrive and are never all in memory. Without `publish`, no file remains.

    Args:
        out: the store.
        dataset: name of the data set.
        split: name of the split.
        part: which part this is, if the split is written in parts: `<split>.1-of-4.parquet`.
        rows_per_group: rows of a full row group.
        bytes_per_group: limit on the size of a row group in memory.

    Raises:
        DataError: an invalid name, or the folder of the data set is a link.
    """

    def __init__(
        self,
        out: Path,
        dataset: str,
        split: str,
        *,
        part: Shard | None = None,
        rows_per_group: int = ROWS_PER_GROUP,
        bytes_per_group: int = BYTES_PER_GROUP,
    ) -> None:
        for name in (dataset, split):
            if not is_plain_name(name):
                raise DataError(
                    f"{name!r} cannot be the name of a data set or split", hint="use letters, digits and _-+."
                )
        self._out, self._dataset, self._split = Path(out), dataset, split
        self._is_part = part is not None
        self._rows_per_group, self._bytes_per_group = rows_per_group, bytes_per_group
        suffix = f".{part.number}-of-{part.total}" if part else ""
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
        self._images = DistinctCounter()
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
        ids = _hashes_of_ids(table)
        if len(np.unique(ids)) < len(ids):
            self._refuse_repeated_ids(table)
        self._ids.append(ids)
        self._images.update(pc.unique(table["image"]).to_pylist())
        lists = table["regions"].combine_chunks()
        regions = lists.flatten()
        self._examples += len(table)
        self._regions += len(regions)
        self._masks += len(regions) - int(regions.field("mask_counts").null_count)
        self._no_target += int(pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py())
        self._waiting.append(table)
        self._num_waiting += len(table)
        self._bytes_waiting += table.nbytes
        if self._bytes_waiting >= self._bytes_per_group:
            self._flush(1)
        elif self._num_waiting >= self._rows_per_group:
            self._flush(self._rows_per_group)

    def finish(self) -> SplitSummary:
        """Close the file, which keeps its temporary name.

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
        self._ids.clear()
        ids.sort()  # in place: a split may have millions of ids
        if (ids[1:] == ids[:-1]).any():
            self._refuse_repeated_ids(pq.read_table(self._unfinished, columns=["id"]))
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
        """Give the finished file its final name, or another one in the same folder."""
        self._unfinished.replace(self.path if name is None else self.path.with_name(name))
        self.is_published = True

    def _flush(self, multiple: int) -> None:
        """Write waiting rows, up to the largest multiple of a number; the rest keep waiting."""
        if not self._waiting:
            return
        waiting = pa.concat_tables(self._waiting)
        num_ready = len(waiting) // multiple * multiple
        if num_ready:
            fitting = int(self._bytes_per_group * len(waiting) / max(waiting.nbytes, 1))
            num_rows = min(max(fitting, 1), self._rows_per_group)
            self._parquet.write_table(waiting.slice(0, num_ready).combine_chunks(), row_group_size=num_rows)
        self._num_waiting = len(waiting) - num_ready
        self._bytes_waiting = waiting.slice(num_ready).nbytes
        self._waiting = [waiting.slice(num_ready)] if self._num_waiting else []

    def _refuse_repeated_ids(self, table: pa.Table) -> None:
        ids = _hashes_of_ids(table)
        order = np.argsort(ids, kind="stable")
        second = int(order[1:][np.diff(ids[order]) == 0][0])
        raise DataError(
            "an example cannot be stored: its id occurs twice",
            where=f"{self._dataset}:{self._split} {table['id'][second].as_py()}",
        )


def _hashes_of_ids(table: pa.Table) -> Int64[np.ndarray, " rows"]:
    return np.fromiter(map(hash, table["id"].to_pylist()), np.int64, len(table))


def has_columns_of_store(path: Path) -> bool:
    """Whether a path is a Parquet file with the columns of a store."""
    try:
        return path.is_file() and set(SCHEMA.names) - set(ADDED) <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return False


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files that killed processes of earlier versions left beside a file."""
    for old in path.parent.glob(f".{path.name}.*.part"):
        number = old.name.split(".")[-2]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            old.unlink(missing_ok=True)


def write_split(
    out: Path, dataset: str, split: str, examples: Iterable[Example], *, rows_per_group: int = ROWS_PER_GROUP
) -> SplitSummary:
    """Write a split, atomically and without holding all examples in memory.

    The manifest lists the split only after `write_manifest` is called with the summary.

    Raises:
        DataError: there are no examples, or one is invalid (foreign split, repeated id, blank expression, a path that
            leaves the image root, a box that is not finite and ordered, a mask of another size than the image).
    """
    remaining = iter(examples)
    with SplitWriter(out, dataset, split, rows_per_group=rows_per_group) as writer:
        while batch := list(islice(remaining, rows_per_group)):
            writer.write(examples_to_table(batch))
        summary = writer.finish()
        writer.publish()
    return summary


@dataclass(frozen=True)
class Listing:
    """One split, or one part of it, to be listed in a manifest."""

    summary: SplitSummary
    images: str | None = None
    """The image root: absolute, or relative to the store; None for `<store>/<dataset>`."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the examples (settings, source files and their sha256)."""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    """Results of the preparation that decide whether it must be repeated."""
    writer: SplitWriter | None = None
    """Holds the finished file, to be published; None: it already has its final name."""


def write_manifest(
    out: Path,
    summaries: Sequence[SplitSummary],
    *,
    images: str | None = None,
    origin: Mapping[str, Any] | None = None,
    outcome: Mapping[str, Any] | None = None,
    part: Shard | None = None,
) -> Path:
    """List splits whose files already have their final names; see `list_splits`."""
    listings = [Listing(summary, images, origin or {}, outcome or {}) for summary in summaries]
    return list_splits(out, listings, part=part)


def list_splits(out: Path, listings: Sequence[Listing], *, part: Shard | None = None) -> Path:
    """Add splits to `<out>/manifest.json`, or replace those of the same name; other splits stay.

    Safe for concurrent processes. If anything fails or the process is killed, the store is unchanged or has all of the
    new splits: a file that replaces another one has a temporary name until the manifest lists it. Files that the
    manifest no longer lists are removed.

    Args:
        out: the store.
        listings: the splits.
        part: the part of their splits that the listings are; parts of another origin or count are dropped.

    Raises:
        DataError: the existing manifest is damaged, or a file would lie outside the store.
    """
    out = Path(out)
    with _locked(out):
        empty: dict[str, Any] = {"schema": STORE_SCHEMA, "datasets": {}}
        manifest = read_manifest(out) if (out / MANIFEST).exists() else empty
        before = {entry["file"]: entry["sha256"] for entry in file_entries(manifest)}
        entries = [_add_entry(manifest, listing, part) for listing in listings]
        finals = [str(entry["file"]) for entry in entries]
        with _published(out, listings, entries, before):
            _write(out, manifest)
        with suppress(OSError):  # the store is complete; only file names remain to be tidied
            _rename_to_final(out, manifest, entries, finals)
        listed = {entry["file"] for entry in file_entries(manifest)}
        for file in {*before, *_stale_temporaries(out, finals)} - listed:
            _remove(out, file)
    return out / MANIFEST


def new_split(out: Path, dataset: str, split: str, *, part: Shard | None = None) -> SplitWriter:
    """A writer for a split, or part of one, whose file is new or replaces a file of the store.

    Raises:
        DataError: a foreign file has the name of the split; or see `SplitWriter`.
    """
    writer = SplitWriter(out, dataset, split, part=part)
    if writer.path.is_symlink() or (writer.path.exists() and not has_columns_of_store(writer.path)):
        listed = {entry["file"] for entry in file_entries(read_manifest(out))} if (out / MANIFEST).exists() else set()
        if f"{dataset}/{writer.path.name}" not in listed:
            with writer:
                raise DataError(
                    "a file that does not belong to this store has the name of the split",
                    where=str(writer.path),
                    hint="move it, or give another --out or --name",
                )
    return writer


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = out / f".{MANIFEST}.lock"
    if lock.is_symlink():
        lock.unlink()
    with FileLock(lock):
        yield


def _write(out: Path, manifest: Mapping[str, Any]) -> None:
    write_atomically(out / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())


def _add_entry(manifest: dict[str, Any], listing: Listing, part: Shard | None) -> dict[str, Any]:
    """Add a split to a manifest; returns the entry of its file."""
    summary = listing.summary
    splits = manifest["datasets"].setdefault(summary.dataset, {"splits": {}})["splits"]
    facts = {key: value for key, value in asdict(summary).items() if key not in ("dataset", "split")}
    facts |= {"outcome": dict(listing.outcome)}
    shared = {"images_at": listing.images, "origin": dict(listing.origin)}
    if part is None:
        splits[summary.split] = facts = facts | shared
    else:
        splits[summary.split] = _with_part(splits.get(summary.split, {}), facts, shared, part)
    return facts


@contextmanager
def _published(
    out: Path, listings: Sequence[Listing], entries: Sequence[dict[str, Any]], before: Mapping[str, str]
) -> Iterator[None]:
    """Publish the finished files; if the block fails, remove those that no manifest lists.

    A file that would replace one of other content gets a temporary name, which its entry then lists.
    """
    try:
        for listing, entry in zip(listings, entries, strict=True):
            if listing.writer is None:
                continue
            if before.get(entry["file"], entry["sha256"]) != entry["sha256"]:
                entry["file"] = entry["file"].removesuffix("parquet") + f"{entry['sha256'][:16]}.parquet"
            path = _new_file(out, entry["file"])
            listing.writer.publish(path.name)
        yield
    except BaseException:
        listed = {entry["file"] for entry in file_entries(read_manifest(out))} if (out / MANIFEST).exists() else set()
        for listing, entry in zip(listings, entries, strict=True):
            if listing.writer is not None and listing.writer.is_published and entry["file"] not in listed:
                with suppress(OSError):
                    _remove(out, entry["file"])
        raise


def _new_file(out: Path, file: str) -> Path:
    """The path of a new file of the store; an existing link there is replaced."""
    folder, _, name = file.rpartition("/")
    inside = path_inside(out, folder)
    if inside is None:
        raise DataError(
            "the folder of the data set is a link", where=str(out / folder), hint="move the folder itself there"
        )
    return inside / name


def _rename_to_final(
    out: Path, manifest: Mapping[str, Any], entries: Sequence[dict[str, Any]], finals: Sequence[str]
) -> None:
    """Give files their final names, which the manifest does not list yet, and then list them under these."""
    moved = [(entry, final) for entry, final in zip(entries, finals, strict=True) if entry["file"] != final]
    if not moved:
        return
    for entry, final in moved:
        (out / final).unlink(missing_ok=True)
        try:
            os.link(out / entry["file"], out / final)
        except OSError:  # a file system without hard links
            shutil.copyfile(out / entry["file"], out / final)
    interim = [str(entry["file"]) for entry, _ in moved]
    try:
        for entry, final in moved:
            entry["file"] = final
        _write(out, manifest)
    except OSError:
        for (entry, _), file in zip(moved, interim, strict=True):
            entry["file"] = file
        raise
    for file in interim:
        _remove(out, file)


def _stale_temporaries(out: Path, finals: Sequence[str]) -> list[str]:
    """Temporary files of splits that a killed process may have left behind."""
    found = []
    for final in finals:
        folder, _, name = final.rpartition("/")
        for path in (out / folder).glob("*.parquet"):
            interim = _INTERIM.fullmatch(path.name)
            if interim and f"{interim[1]}.parquet" == name:
                found.append(f"{folder}/{path.name}")
    return found


def _remove(out: Path, file: str) -> None:
    path = path_inside(out, file)
    if path is not None and path.is_file():
        path.unlink(missing_ok=True)


def _with_part(old: Mapping[str, Any], facts: dict[str, Any], shared: Mapping[str, Any], part: Shard) -> dict[str, Any]:
    number, count = part.number, part.total
    fits = old.get("num_parts") == count and all(old.get(key) == value for key, value in shared.items())
    parts = dict(old["parts"]) if fits else {}
    parts[str(number)] = facts
    totals = {key: sum(one[key] for one in parts.values()) for key in COUNTED}
    return {"num_parts": count, "parts": parts, **totals, **shared}
