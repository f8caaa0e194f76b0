"""The layout of a store: the columns of its Parquet files, and the manifest that lists them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from refcli.contracts.example import Example
from refcli.errors import DataError
from refcli.files import is_plain_name, path_inside

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
        pa.field("ignored_counts", pa.binary()),
    ]
)
"""One row per Example. A mask has the size of its image, so only its run lengths are stored."""
ADDED = ("ignored_counts",)
"""Columns that files of earlier versions lack; they are read as nulls."""
SIDES = ("x1", "y1", "x2", "y2")


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Rows of `SCHEMA`, column by column (several times faster than row by row).

    Raises:
        DataError: a mask has another size than its image; the columns cannot represent it.
    """
    for example in examples:
        for mask in (*(region.mask for region in example.regions), example.ignored):
            if mask is not None and tuple(mask.size) != (example.height, example.width):
                raise DataError(
                    f"an example cannot be stored: a mask has the size {tuple(mask.size)}, "
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
    made = {
        "regions": lists,
        "ignored_counts": pa.array(
            [example.ignored.counts if example.ignored else None for example in examples], pa.binary()
        ),
    }
    arrays = [
        made[field.name] if field.name in made else pa.array([getattr(e, field.name) for e in examples], field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


STORE_SCHEMA = "refcli.store/1"
MANIFEST = "manifest.json"
MOST_BYTES = 1 << 28
"""Limit on the size of a manifest; a split takes about a kilobyte, more if it was read from many files."""
MOST_PARTS = 100_000
_LONGEST_SHOWN = 80
_MOST_SHOWN = 20
_NEW_STORE = "prepare the data again, into a new store"


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("this cannot be the name of a data set or split")
    return name


def _path(text: str) -> str:
    if "\0" in text or not text:
        raise ValueError("this cannot be a path")
    os.fsencode(text)  # raises a UnicodeEncodeError, which is a ValueError
    return text


_Name = Annotated[str, AfterValidator(_plain_name)]
_Path = Annotated[str, AfterValidator(_path)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Checked(BaseModel):
    """The keys of a manifest that refcli reads; other versions may write more."""

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


class _SingleFile(_Shared, _File):
    pass


class _InParts(_Shared):
    num_parts: int = Field(ge=1, le=MOST_PARTS)
    parts: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")], _File]


class _Dataset(_Checked):
    splits: dict[_Name, dict[str, Any]]


class _Manifest(_Checked):
    datasets: dict[_Name, _Dataset]


def file_entries(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of all files of a manifest."""
    splits = [split for dataset in manifest["datasets"].values() for split in dataset["splits"].values()]
    return [entry for split in splits for entry in (split["parts"].values() if "parts" in split else [split])]


def is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether a split is in one file, or all its parts are present."""
    return "parts" not in entry or len(entry["parts"]) == entry["num_parts"]


def split_files(entry: Mapping[str, Any], *, where: str) -> list[Mapping[str, Any]]:
    """The files of a split in order: one, or its parts.

    Raises:
        DataError: parts are missing.
    """
    if "parts" not in entry:
        return [entry]
    missing = [number for number in range(1, entry["num_parts"] + 1) if str(number) not in entry["parts"]]
    if missing:
        raise DataError(
            f"parts {missing[:_MOST_SHOWN]}{' and more' if len(missing) > _MOST_SHOWN else ''} of {entry['num_parts']} "
            "are missing",
            where=where,
            hint=f"run prepare-data with --shard {missing[0]}/{entry['num_parts']}",
        )
    return [entry["parts"][str(number)] for number in range(1, entry["num_parts"] + 1)]


def stored_file(store: Path, file: str) -> Path:
    """The path of a file that the manifest of a store lists.

    Raises:
        DataError: the file, or a folder on its path, is a link.
    """
    path = path_inside(store, file)
    if path is None:
        raise DataError(
            "a file of the store, or its folder, is a link",
            where=str(store / file),
            hint="put the file itself into the store (cp -rL copies the targets of links)",
        )
    return path


def is_in_place(store: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file of an entry exists and has the size that the manifest lists."""
    path = path_inside(store, str(entry.get("file", "")))
    return path is not None and path.is_file() and path.stat().st_size == entry["bytes"]


def read_manifest(store: Path) -> dict[str, Any]:
    """Read and check the manifest of a store: all names are plain, every file lies in the folder of its data set.

    Raises:
        DataError: the manifest is not JSON, has another version, lacks a required key, or has an invalid value.
    """
    path = store / MANIFEST
    content = _parsed(path)
    manifest: dict[str, Any] = content if isinstance(content, dict) else {}
    found = manifest.get("schema")
    if found != STORE_SCHEMA:
        raise DataError(
            f"the manifest has version {str(found)[:_LONGEST_SHOWN]!r}, but this program reads {STORE_SCHEMA!r}",
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
        (_InParts if "parts" in entry else _SingleFile).model_validate(entry)
    except ValidationError as error:
        raise _damaged(error, path, place) from error
    for one in entry["parts"].values() if "parts" in entry else [entry]:
        folder, _, name = one["file"].rpartition("/")
        if folder != dataset or not (is_plain_name(name) and name.endswith(".parquet")):
            raise DataError(
                f"the manifest is damaged: {place} names {one['file'][:_LONGEST_SHOWN]!r}, no file of {dataset}",
                where=str(path),
                hint="the store may have been tampered with; prepare the data again, into a new store",
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
