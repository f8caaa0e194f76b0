"""Writing a split of the store as a stream, and listing it in the manifest."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refcli.contracts.example import Example
from refcli.data.columns import SCHEMA, example_to_row
from refcli.errors import DataError
from refcli.files import write_atomically

STORE_SCHEMA = "refcli.store/1"
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 10_000
_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds, as listed in the manifest."""

    dataset: str
    split: str
    file: str
    """Path of the Parquet file relative to the store."""
    sha256: str
    bytes: int
    examples: int
    images: int
    """Distinct pictures."""
    regions: int
    masks: int
    """Regions that have a mask."""
    no_target: int
    """Examples without a region."""


@dataclass
class _Counts:
    """What has gone by so far; it also refuses what does not belong into the split."""

    dataset: str
    split: str
    ids: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    regions: int = 0
    masks: int = 0
    no_target: int = 0

    def add(self, example: Example) -> None:
        problem = self._problem(example)
        if problem:
            raise DataError(
                f"an example cannot be stored: {problem}", where=f"{self.dataset}:{self.split} {example.id}"
            )
        self.ids.add(example.id)
        self.images.add(example.image)
        self.regions += len(example.regions)
        self.masks += sum(region.mask is not None for region in example.regions)
        self.no_target += not example.regions

    def _problem(self, example: Example) -> str | None:
        image = PurePosixPath(example.image)
        if (example.dataset, example.split) != (self.dataset, self.split):
            return f"it belongs to {example.dataset}:{example.split}"
        if example.id in self.ids:
            return "its id occurs twice"
        if not example.expression.strip():
            return "its expression is blank"
        if not example.image or image.is_absolute() or ".." in image.parts:
            return f"its image {example.image!r} is not a path inside the image root"
        if example.width < 1 or example.height < 1:
            return f"its image has the size {example.width} x {example.height}"
        for region in example.regions:
            x1, y1, x2, y2 = region.box_xyxy
            if not all(math.isfinite(value) for value in region.box_xyxy) or x2 < x1 or y2 < y1:
                return f"the box {region.box_xyxy} is not (left, top, right, bottom)"
            if region.mask is not None and tuple(region.mask.size) != (example.height, example.width):
                return f"a mask has the size {region.mask.size}, the image {(example.height, example.width)}"
        return None


def write_split(out: Path, dataset: str, split: str, examples: Iterable[Example]) -> SplitSummary:
    """Write `<out>/<dataset>/<split>.parquet`, atomically and without holding all examples in memory.

    The split is not listed before `write_manifest` is called with the summary.

    Raises:
        DataError: there are no examples, or one is invalid (foreign split, repeated id, blank expression, a path that
            leaves the image root, a box that is not finite and ordered, a mask of another size than the image).
    """
    for name in (dataset, split):
        if not name or set(name) & set(":/\\") or name.startswith("."):
            raise DataError(f"{name!r} cannot be the name of a data set or split", hint="use letters, digits and _-+.")
    path = Path(out) / dataset / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    counts = _Counts(dataset, split)
    try:
        with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            for rows in _batches(examples, counts):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROWS_PER_GROUP)
        if not counts.ids:
            raise DataError("the split has no examples", where=f"{dataset}:{split}", hint="check the source files")
        summary = SplitSummary(
            dataset=dataset,
            split=split,
            file=path.relative_to(out).as_posix(),
            sha256=file_sha256(part),
            bytes=part.stat().st_size,
            examples=len(counts.ids),
            images=len(counts.images),
            regions=counts.regions,
            masks=counts.masks,
            no_target=counts.no_target,
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return summary


def write_manifest(
    out: Path,
    summaries: Sequence[SplitSummary],
    *,
    images: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Add splits to `<out>/manifest.json` (or replace theirs), atomically; other splits stay as they are.

    Args:
        out: the store.
        summaries: what `write_split` returned.
        images: the image root of these data sets: absolute, or relative to the store; default `<out>/<dataset>`.
        origin: where the examples come from (settings, source files and their sha256), kept with each split.
    """
    path = Path(out) / MANIFEST
    empty: dict[str, Any] = {"schema": STORE_SCHEMA, "datasets": {}}
    manifest = read_manifest(Path(out)) if path.exists() else empty
    for summary in summaries:
        entry = manifest["datasets"].setdefault(summary.dataset, {"images": None, "splits": {}})
        if images is not None:
            entry["images"] = images
        facts = {key: value for key, value in asdict(summary).items() if key not in ("dataset", "split")}
        entry["splits"][summary.split] = facts | ({"origin": dict(origin)} if origin else {})
    write_atomically(path, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    return path


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        DataError: it is no JSON, of another version, or lacks what a manifest must have.
    """
    path = store / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the manifest cannot be read: {error}", where=str(path)) from error
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != STORE_SCHEMA:
        raise DataError(
            f"the manifest is of version {found!r}, this program reads {STORE_SCHEMA!r}",
            where=str(path),
            hint="prepare the data again with this version",
        )
    try:
        for entry in manifest["datasets"].values():
            for split in entry["splits"].values():
                str(split["file"]), int(split["examples"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"the manifest is incomplete: {error!r}", where=str(path), hint="prepare the data again"
        ) from error
    return dict(manifest)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _batches(examples: Iterable[Example], counts: _Counts) -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    for example in examples:
        counts.add(example)
        rows.append(example_to_row(example))
        if len(rows) == ROWS_PER_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows
