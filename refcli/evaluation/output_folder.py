"""The folder that an evaluation is written into: what is in it already is kept, unless it is an earlier evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from refcli.data.reading.json_files import read_json
from refcli.errors import DataError, UsageError
from refcli.evaluation.report.document import EVALUATION_SCHEMA
from refcli.evaluation.run import PER_SAMPLE
from refcli.files import write_atomically
from refcli.inference.image_folders import SYSTEM_NAMES

SUMMARY, PAGE = "summary.json", "report.html"
OWN = frozenset({PER_SAMPLE, SUMMARY, PAGE})
"""What an evaluation writes. `files` of the summary lists what is there; it has no say in any other name."""


class _Summary(msgspec.Struct):
    schema: str
    files: list[str] = []


def check_free(folder: Path, *, force: bool = False) -> None:
    """Make sure that nothing is lost by writing an evaluation into a folder.

    Args:
        folder: it may be missing.
        force: an earlier evaluation may be replaced.

    Raises:
        UsageError: it holds something; with `force`, something of the same name that its summary does not list.
    """
    if not folder.is_dir():
        return
    names = {entry.name for entry in folder.iterdir() if entry.name.lower() not in SYSTEM_NAMES}
    listed = listed_files(folder)
    if names and not force:
        what = "holds an evaluation already" if names & listed else "is not empty"
        hint = "choose another --out" + (", or replace the evaluation with --force" if names & listed else "")
        raise UsageError(f"the folder {what}", where=f"--out {folder}", hint=hint)
    if foreign := sorted(names & OWN - listed):
        raise _not_ours(folder, foreign[0])


def write_summary(folder: Path, document: Mapping[str, object], files: Sequence[str], *, force: bool = False) -> None:
    """Begin an evaluation's folder: remove what an earlier one wrote, and list what this one will write.

    Args:
        folder: made where it is missing.
        document: the figures.
        files: names of `OWN` that follow.
        force: see `check_free`.

    Raises:
        UsageError: see `check_free`.
    """
    check_free(folder, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(listed_files(folder) - {SUMMARY}):
        (folder / name).unlink(missing_ok=True)
    _write(folder, {**document, "files": sorted({*files, SUMMARY})})


def page_place(folder: Path) -> Path:
    """Where the page goes; it is listed before it is written, where there is a summary.

    Raises:
        UsageError: there is a page that the summary does not list.
    """
    path, listed = folder / PAGE, listed_files(folder)
    if PAGE in listed:
        return path
    if path.is_symlink() or path.exists():
        raise _not_ours(folder, PAGE)
    if SUMMARY in listed:
        document = json.loads((folder / SUMMARY).read_bytes())
        _write(folder, {**document, "files": sorted({*listed, PAGE})})
    return path


def listed_files(folder: Path) -> frozenset[str]:
    """Which of `OWN` the summary of a folder lists; none where there is no summary of an evaluation."""
    path = folder / SUMMARY
    if path.is_symlink() or not path.is_file():
        return frozenset()
    try:
        summary = read_json(path, _Summary)
    except DataError:
        return frozenset()
    return OWN & set(summary.files) if summary.schema == EVALUATION_SCHEMA else frozenset()


def _write(folder: Path, document: Mapping[str, object]) -> None:
    write_atomically(folder / SUMMARY, (json.dumps(document, indent=2) + "\n").encode())


def _not_ours(folder: Path, name: str) -> UsageError:
    return UsageError(
        f"{name} is not replaced: {SUMMARY} does not list it as a file of this evaluation",
        where=str(folder / name),
        hint="give another --out, or remove it yourself",
    )
