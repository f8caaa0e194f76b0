"""The exact origin of a split: it shows whether work must be repeated, and verifies a store."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import refcli
from refcli.config.schema import Settings
from refcli.data.shard import Shard
from refcli.data.store.layout import MANIFEST, is_in_place, read_manifest
from refcli.data.store.read import Store
from refcli.errors import DataError
from refcli.files import file_sha256

MOST_FILES = 500_000
"""Limit on the files of a directory of annotations."""


def describe_origin(
    *,
    source: str,
    settings: Settings,
    files: Mapping[str, Path],
    images: Sequence[Path],
    check_images: bool,
    splits: Sequence[str] | None,
    hub: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Everything that a preparation depends on: equal descriptions give equal splits.

    `hub` is the repository, revision and commit of files of the Hugging Face Hub.
    """
    origin = {
        "source": source,
        "settings": settings.model_dump(mode="json"),
        "inputs": {role: {"path": str(path.resolve()), "sha256": tree_sha256(path)} for role, path in files.items()},
        "pictures": [str(root.resolve()) for root in images],
        "check_images": check_images,
        "splits": sorted(splits) if splits else None,
        "refcli": refcli.__version__,
    }
    return origin if hub is None else origin | {"hub": dict(hub)}


def tree_sha256(path: Path) -> str:
    """The sha256 of a file, or of the names and hashes of all files of a directory.

    Raises:
        OSError: the file or directory is missing, unreadable, or a directory with more than `MOST_FILES` files.
    """
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no file or folder", str(path))
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    files = list(islice(below, MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise OSError(errno.EFBIG, f"more than {MOST_FILES:,} files", str(path))
    digest = hashlib.sha256()
    for file in filter(Path.is_file, sorted(files)):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def is_unchanged(store: Path, dataset: str, origin: Mapping[str, Any], *, part: Shard | None, strict: bool) -> bool:
    """Whether repeating a preparation would change nothing.

    The store must have all of its splits, complete and from the same origin. No split may lack images, which may have
    been added since; if `strict`, no split may have a problem that `strict` refuses.
    """
    if not (store / MANIFEST).is_file():
        return False
    splits = read_manifest(store)["datasets"].get(dataset, {"splits": {}})["splits"]
    files = {name: facts for name, facts in splits.items() if facts.get("origin") == origin}
    if part is not None:
        files = {
            name: facts["parts"].get(str(part.number)) or {}
            for name, facts in files.items()
            if facts.get("num_parts") == part.total
        }
    outcomes = [file.get("outcome", {}) for file in files.values()]
    return (
        bool(files)
        and all(is_in_place(store, file) for file in files.values())
        and all(set(outcome.get("splits", ())) <= files.keys() for outcome in outcomes)
        and not any(outcome.get("missing_images", 1) or outcome.get("lost_masks") for outcome in outcomes)
        and not (strict and any(outcome.get("refused_if_strict", True) for outcome in outcomes))
    )


def verify_store(store: Path) -> list[str]:
    """Read all files of a store, and its inputs if they still exist; returns the differences from the manifest.

    Raises:
        DataError: there is no readable manifest.
    """
    opened = Store(store)
    wrong = []
    known: dict[Path, str] = {}
    for dataset, entry in read_manifest(store)["datasets"].items():
        for split, facts in entry["splits"].items():
            name = f"{dataset}:{split}"
            changed = []
            for file in facts["parts"].values() if "parts" in facts else [facts]:
                changed += _differences(store / file["file"], file["sha256"], name, known, is_required=True)
            wrong += changed or _damage(opened, name)
            for role, given in facts.get("origin", {}).get("inputs", {}).items():
                where = f"{name}, input {role}"
                wrong += _differences(Path(given["path"]), given["sha256"], where, known, is_required=False)
    return wrong


def _damage(store: Store, name: str) -> list[str]:
    """The error on reading all rows of a split, if any."""
    try:
        for _ in store.split(name).tables():
            pass
    except DataError as error:
        return [f"{name}: {error.where}: {error.message}"]
    return []


def _differences(path: Path, sha256: str, where: str, known: dict[Path, str], *, is_required: bool) -> list[str]:
    try:
        if path not in known:
            known[path] = tree_sha256(path)
    except FileNotFoundError:
        return [f"{where}: {path} is gone"] if is_required else []
    except OSError as error:
        return [f"{where}: {path} cannot be read: {error.strerror or error}"]
    return [] if known[path] == sha256 else [f"{where}: {path} was changed"]
