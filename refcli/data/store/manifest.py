"""The manifest of a store: which splits it has, in which files, and where they come from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from refcli.data.store.write import SplitSummary, SplitWriter, has_columns_of_store
from refcli.errors import DataError
from refcli.files import is_plain_name, path_inside, write_atomically

STORE_SCHEMA = "refcli.store/1"
MANIFEST = "manifest.json"
MOST_BYTES = 1 << 28
"""No manifest comes near it: a split takes about a kilobyte, more where it was made of many files."""
MOST_PARTS = 100_000
_LONGEST_SHOWN = 80
_MOST_SHOWN = 20
_NEW_STORE = "prepare the data again, into a new store"
COUNTED = ("examples", "images", "regions", "masks", "no_target")
"""Counts of a split that are the sums of its parts' (an image is in one part only)."""
_INTERIM = re.compile(r"(.+)\.[0-9a-f]{16}\.parquet")
"""The name of a file until the manifest lists it in place of the one whose name it takes."""


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("this cannot be the name of a data set or split")
    return name


def _path(text: str) -> str:
    if "\0" in text or not text:
        raise ValueError("this cannot be a path")
    os.fsencode(text)  # an error of its own, a ValueError too
    return text


_Name = Annotated[str, AfterValidator(_plain_name)]
_Path = Annotated[str, AfterValidator(_path)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Checked(BaseModel):
    """What refcli reads of a manifest; other versions may have written more."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Outcome(_Checked):
    splits: list[str] = []
    missing_images: int = 0
    refused_if_strict: str | None = None


class _File(_Checked):
    file: str
    sha256: str
    bytes: _Count
    examples: _Count
    images: _Count
    regions: _Count
    masks: _Count
    no_target: _Count
    outcome: _Outcome = _Outcome()


class _Input(_Checked):
    path: _Path
    sha256: str


class _Origin(_Checked):
    inputs: dict[str, _Input] = {}


class _Shared(_Checked):
    images_at: _Path | None = None
    origin: _Origin = _Origin()


class _Whole(_Shared, _File):
    pass


class _InParts(_Shared):
    num_parts: int = Field(ge=1, le=MOST_PARTS)
    parts: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")], _File]


class _Dataset(_Checked):
    splits: dict[_Name, dict[str, Any]]


class _Manifest(_Checked):
    datasets: dict[_Name, _Dataset]


@dataclass(frozen=True)
class Listing:
    """One split, or one part of it, to be listed in a manifest."""

    summary: SplitSummary
    """What its writer returned."""
    images: str | None = None
    """The image root: absolute, or relative to the store; None for `<store>/<dataset>`."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the examples come from (settings, source files and their sha256)."""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    """What happened on the way."""
    writer: SplitWriter | None = None
    """Has the finished file, to be moved to its place; None: it is there already."""


def write_manifest(
    out: Path,
    summaries: Sequence[SplitSummary],
    *,
    images: str | None = None,
    origin: Mapping[str, Any] | None = None,
    outcome: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
) -> Path:
    """List splits whose files are at their places; see `list_splits`."""
    listings = [Listing(summary, images, origin or {}, outcome or {}) for summary in summaries]
    return list_splits(out, listings, part=part)


def list_splits(out: Path, listings: Sequence[Listing], *, part: tuple[int, int] | None = None) -> Path:
    """Add splits to `<out>/manifest.json` (or replace theirs); other splits stay as they are.

    Several processes may do so at a time. Whatever fails and whenever the process is killed, the store is as it was or
    has all of the new splits: a file that replaces another one has a name of its own until the manifest lists it. Files
    that the manifest no longer lists are removed.

    Args:
        out: the store.
        listings: the splits.
        part: (number, count): the listings are one part of their splits. Parts of another origin or count make way.

    Raises:
        DataError: the manifest that is there is damaged, or a file would not lie in the store.
    """
    out = Path(out)
    with _locked(out):
        empty: dict[str, Any] = {"schema": STORE_SCHEMA, "datasets": {}}
        manifest = read_manifest(out) if (out / MANIFEST).exists() else empty
        before = {entry["file"]: entry["sha256"] for entry in _files(manifest)}
        entries = [_enter(manifest, listing, part) for listing in listings]
        finals = [str(entry["file"]) for entry in entries]
        with _published(out, listings, entries, before):
            _write(out, manifest)
        with suppress(OSError):  # the store is whole; what follows is order only
            _take_final_names(out, manifest, entries, finals)
        listed = {entry["file"] for entry in _files(manifest)}
        for file in {*before, *_left_behind(out, finals)} - listed:
            _remove(out, file)
    return out / MANIFEST


def new_split(out: Path, dataset: str, split: str, *, part: tuple[int, int] | None = None) -> SplitWriter:
    """A writer for a split, or part of one, whose place is free or held by a file of the store.

    Raises:
        DataError: a file that the store did not write is in its place, or see `SplitWriter`.
    """
    writer = SplitWriter(out, dataset, split, part=part)
    if writer.path.is_symlink() or (writer.path.exists() and not has_columns_of_store(writer.path)):
        listed = {entry["file"] for entry in _files(read_manifest(out))} if (out / MANIFEST).exists() else set()
        if f"{dataset}/{writer.path.name}" not in listed:
            with writer:
                raise DataError(
                    "a file that is not of this store has the name of the split",
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


def _enter(manifest: dict[str, Any], listing: Listing, part: tuple[int, int] | None) -> dict[str, Any]:
    """Put a split into a manifest; returns the entry of its file."""
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
    """Move the finished files into the store; where the block fails, those that no manifest lists go again.

    A file that would replace one of other content takes a name of its own, which is then in its entry.
    """
    try:
        for listing, entry in zip(listings, entries, strict=True):
            if listing.writer is None:
                continue
            if before.get(entry["file"], entry["sha256"]) != entry["sha256"]:
                entry["file"] = entry["file"].removesuffix("parquet") + f"{entry['sha256'][:16]}.parquet"
            path = _place_of(out, entry["file"])
            listing.writer.publish(path.name)
        yield
    except BaseException:
        listed = {entry["file"] for entry in _files(read_manifest(out))} if (out / MANIFEST).exists() else set()
        for listing, entry in zip(listings, entries, strict=True):
            if listing.writer is not None and listing.writer.is_published and entry["file"] not in listed:
                with suppress(OSError):
                    _remove(out, entry["file"])
        raise


def _place_of(out: Path, file: str) -> Path:
    """Where to put a file of the store; a link there is replaced."""
    folder, _, name = file.rpartition("/")
    inside = path_inside(out, folder)
    if inside is None:
        raise DataError(
            "the folder of the data set is a link", where=str(out / folder), hint="move the folder itself there"
        )
    return inside / name


def _take_final_names(
    out: Path, manifest: Mapping[str, Any], entries: Sequence[dict[str, Any]], finals: Sequence[str]
) -> None:
    """Give files their final names, which the manifest does not list at the moment, and then list those."""
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


def _left_behind(out: Path, finals: Sequence[str]) -> list[str]:
    """Interim files of splits, which a killed process may have left."""
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


def _files(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of all files."""
    splits = [split for dataset in manifest["datasets"].values() for split in dataset["splits"].values()]
    return [entry for split in splits for entry in (split["parts"].values() if "parts" in split else [split])]


def is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether a split is in one file, or all its parts are there."""
    return "parts" not in entry or len(entry["parts"]) == entry["num_parts"]


def _with_part(
    old: Mapping[str, Any], facts: dict[str, Any], shared: Mapping[str, Any], part: tuple[int, int]
) -> dict[str, Any]:
    number, count = part
    fits = old.get("num_parts") == count and all(old.get(key) == value for key, value in shared.items())
    parts = dict(old["parts"]) if fits else {}
    parts[str(number)] = facts
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
            f"parts {missing[:_MOST_SHOWN]}{' and more' if len(missing) > _MOST_SHOWN else ''} of {entry['num_parts']} "
            "are not there yet",
            where=where,
            hint=f"run prepare-data with --shard {missing[0]}/{entry['num_parts']}",
        )
    return [entry["parts"][str(number)] for number in range(1, entry["num_parts"] + 1)]


def stored_file(store: Path, file: str) -> Path:
    """Where a file lies that the manifest of a store lists.

    Raises:
        DataError: it is a link, or a folder on the way to it is one.
    """
    path = path_inside(store, file)
    if path is None:
        raise DataError(
            "a file of the store is a link, or its folder is one",
            where=str(store / file),
            hint="put the file itself into the store (cp -rL copies what links lead to)",
        )
    return path


def is_in_place(store: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file of an entry is there and has the size that the manifest lists."""
    path = path_inside(store, str(entry.get("file", "")))
    return path is not None and path.is_file() and path.stat().st_size == entry["bytes"]


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a store, checked: all names are plain names, every file lies in the folder of its data set.

    Raises:
        DataError: it is no JSON, of another version, lacks what a manifest must have, or has what none may have.
    """
    path = store / MANIFEST
    content = _parsed(path)
    manifest: dict[str, Any] = content if isinstance(content, dict) else {}
    found = manifest.get("schema")
    if found != STORE_SCHEMA:
        raise DataError(
            f"the manifest is of version {str(found)[:_LONGEST_SHOWN]!r}, this program reads {STORE_SCHEMA!r}",
            where=str(path),
            hint="prepare the data again with this version, into a new store",
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise _damaged(error, path, "") from error
    for name, dataset in manifest["datasets"].items():
        for split, entry in dataset["splits"].items():
            _check_split(entry, name, split, path)
    return manifest


def _parsed(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        parsed: object = json.loads(content, parse_constant=_refuse_constant)
        return parsed
    except RecursionError as error:
        raise DataError("the manifest is nested too deeply", where=str(path), hint=_NEW_STORE) from error
    except (OSError, ValueError) as error:
        raise DataError(f"the manifest cannot be read: {error}", where=str(path), hint=_NEW_STORE) from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check_split(entry: Mapping[str, Any], dataset: str, split: str, path: Path) -> None:
    place = f"datasets.{dataset}.splits.{split}"
    try:
        (_InParts if "parts" in entry else _Whole).model_validate(entry)
    except ValidationError as error:
        raise _damaged(error, path, place) from error
    for one in entry["parts"].values() if "parts" in entry else [entry]:
        folder, _, name = one["file"].rpartition("/")
        if folder != dataset or not (is_plain_name(name) and name.endswith(".parquet")):
            raise DataError(
                f"the manifest is damaged: {place} names {one['file'][:_LONGEST_SHOWN]!r}, no file of {dataset}",
                where=str(path),
                hint="do not use a store that somebody has tampered with; prepare the data again, into a new store",
            )
    if "parts" in entry and any(int(number) > entry["num_parts"] for number in entry["parts"]):
        raise DataError(f"the manifest is damaged: {place} has more parts than it should", where=str(path))


def _damaged(error: ValidationError, path: Path, place: str) -> DataError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    keys = (str(key)[:_LONGEST_SHOWN] for key in first["loc"] if key != "[key]")
    key = ".".join(filter(None, [place, *keys]))
    reason = first["msg"].removeprefix("Value error, ")
    fault = f"is incomplete: {key} is missing" if first["type"] == "missing" else f"is damaged: {key}: {reason}"
    return DataError(f"the manifest {fault}", where=str(path), hint=_NEW_STORE)
