"""Where a split comes from, exactly: so that unchanged work is not done again and a store can be verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import refcli
from refcli.config.schema import Settings
from refcli.data.manifest import MANIFEST, read_manifest, split_files
from refcli.errors import DataError
from refcli.files import file_sha256


def describe_origin(
    *,
    source: str,
    settings: Settings,
    files: Mapping[str, Path],
    images: Sequence[Path],
    check_images: bool,
    splits: Sequence[str] | None,
) -> dict[str, Any]:
    """What a preparation depends on: equal descriptions give equal splits."""
    return {
        "source": source,
        "settings": settings.model_dump(mode="json"),
        "inputs": {role: {"path": str(path.resolve()), "sha256": tree_sha256(path)} for role, path in files.items()},
        "pictures": [str(root.resolve()) for root in images],
        "check_images": check_images,
        "splits": sorted(splits) if splits else None,
        "refcli": refcli.__version__,
    }


def tree_sha256(path: Path) -> str:
    """The sha256 of a file; of a directory, that of the names and hashes of all its files."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def is_unchanged(
    store: Path, dataset: str, origin: Mapping[str, Any], *, part: tuple[int, int] | None, strict: bool
) -> bool:
    """Whether doing a preparation again would change nothing.

    The store must have every split of it, from the same origin and whole; none may have left pictures out, which may
    be there by now; and if `strict`, none may have had a problem that strict refuses.
    """
    if not (store / MANIFEST).is_file():
        return False
    splits = read_manifest(store)["datasets"].get(dataset, {"splits": {}})["splits"]
    files = {name: facts for name, facts in splits.items() if facts.get("origin") == origin}
    if part is not None:
        files = {
            name: facts["parts"].get(str(part[0])) or {}
            for name, facts in files.items()
            if facts.get("num_parts") == part[1]
        }
    outcomes = [file.get("outcome", {}) for file in files.values()]
    return (
        bool(files)
        and all(_is_whole(store, file) for file in files.values())
        and all(set(outcome.get("splits", ())) <= files.keys() for outcome in outcomes)
        and not any(outcome.get("missing_images", 1) for outcome in outcomes)
        and not (strict and any(outcome.get("refused_if_strict", True) for outcome in outcomes))
    )


def _is_whole(store: Path, file: Mapping[str, Any]) -> bool:
    path = store / str(file.get("file", ""))
    return path.is_file() and path.stat().st_size == file["bytes"]


def verify_store(store: Path) -> list[str]:
    """Read every file of a store, and its inputs where they still lie; returns what is not as the manifest says.

    Raises:
        DataError: there is no readable manifest.
    """
    if not (store / MANIFEST).is_file():
        raise DataError("there is no store here", where=str(store), hint="refcli prepare-data NAME --out STORE")
    wrong = []
    known: dict[str, str] = {}
    for dataset, entry in read_manifest(store)["datasets"].items():
        for split, facts in entry["splits"].items():
            for file in split_files(facts, where=f"{dataset}:{split}"):
                wrong += _differences(store / file["file"], file["sha256"], f"{dataset}:{split}", known, must=True)
            for role, given in facts.get("origin", {}).get("inputs", {}).items():
                where = f"{dataset}:{split}, input {role}"
                wrong += _differences(Path(given["path"]), given["sha256"], where, known, must=False)
    return wrong


def _differences(path: Path, sha256: str, where: str, known: dict[str, str], *, must: bool) -> list[str]:
    if not path.exists():
        return [f"{where}: {path} is gone"] if must else []
    if str(path) not in known:
        known[str(path)] = tree_sha256(path)
    return [] if known[str(path)] == sha256 else [f"{where}: {path} was changed"]
