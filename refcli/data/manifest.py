"""The manifest of a store: which splits it has, in which files, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from refcli.data.store_writing import SplitSummary
from refcli.errors import DataError
from refcli.files import write_atomically

STORE_SCHEMA = "refcli.store/1"
MANIFEST = "manifest.json"
COUNTED = ("examples", "images", "regions", "masks", "no_target")
"""Counts of a split that are the sums of its parts' (a picture is in one part only)."""


def write_manifest(
    out: Path,
    summaries: Sequence[SplitSummary],
    *,
    images: str | None = None,
    origin: Mapping[str, Any] | None = None,
    outcome: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    publish: Callable[[], None] | None = None,
) -> Path:
    """Add splits to `<out>/manifest.json` (or replace theirs), atomically; other splits stay as they are.

    Several processes may do so at a time. Files that the manifest no longer names are removed.

    Args:
        out: the store.
        summaries: what the writers returned.
        images: the image root of these splits: absolute, or relative to the store; default `<out>/<dataset>`.
        origin: where the examples come from (settings, source files and their sha256), kept with each split.
        outcome: what happened on the way, kept with each split.
        part: (number, count): the summaries are one part of their splits. Parts of another origin or count make way.
        publish: moves the files to their places, while no other process touches the manifest.
    """
    path = Path(out) / MANIFEST
    with FileLock(path.with_name(f".{MANIFEST}.lock")):
        empty: dict[str, Any] = {"schema": STORE_SCHEMA, "datasets": {}}
        manifest = read_manifest(Path(out)) if path.exists() else empty
        before = _files(manifest)
        for summary in summaries:
            splits = manifest["datasets"].setdefault(summary.dataset, {"splits": {}})["splits"]
            facts = {key: value for key, value in asdict(summary).items() if key not in ("dataset", "split")}
            facts |= {"outcome": dict(outcome or {})}
            shared = {"images_at": images, "origin": dict(origin or {})}
            if part is None:
                splits[summary.split] = facts | shared
            else:
                splits[summary.split] = _with_part(splits.get(summary.split, {}), facts, shared, part)
        if publish:
            publish()
        write_atomically(path, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
        for file in before - _files(manifest):
            (Path(out) / file).unlink(missing_ok=True)
    return path


def _files(manifest: Mapping[str, Any]) -> set[str]:
    entries = [split for dataset in manifest["datasets"].values() for split in dataset["splits"].values()]
    return {file["file"] for entry in entries for file in (entry["parts"].values() if "parts" in entry else [entry])}


def is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether a split is in one file, or all its parts are there."""
    return "parts" not in entry or len(entry["parts"]) == entry["num_parts"]


def _with_part(
    old: Mapping[str, Any], facts: Mapping[str, Any], shared: Mapping[str, Any], part: tuple[int, int]
) -> dict[str, Any]:
    number, count = part
    fits = old.get("num_parts") == count and all(old.get(key) == value for key, value in shared.items())
    parts = dict(old["parts"]) if fits else {}
    parts[str(number)] = dict(facts)
    totals = {key: sum(one[key] for one in parts.values()) for key in COUNTED}
    return {"num_parts": count, "parts": parts, **totals, **shared}


def split_files(entry: Mapping[str, Any], *, where: str) -> list[Mapping[str, Any]]:
    """The files of a split in order: one, or its parts.

    Raises:
        DataError: parts are still missing.
    """
    if "parts" not in entry:
        return [entry]
    missing = [number for number in range(1, entry["num_parts"] + 1) if str(number) not in entry["parts"]]
    if missing:
        raise DataError(
            f"parts {missing} of {entry['num_parts']} are not there yet",
            where=where,
            hint=f"run prepare-data with --shard {missing[0]}/{entry['num_parts']}",
        )
    return [entry["parts"][str(number)] for number in range(1, entry["num_parts"] + 1)]


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
                for part in split["parts"].values() if "parts" in split else [split]:
                    str(part["file"]), int(part["examples"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"the manifest is incomplete: {error!r}", where=str(path), hint="prepare the data again"
        ) from error
    return dict(manifest)
