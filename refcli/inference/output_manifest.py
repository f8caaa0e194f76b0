"""The list of the files that a command wrote to an output folder; only listed files are ever removed."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from refcli.answers.table import WRITERS
from refcli.errors import DataError, UsageError
from refcli.files import path_inside, remove_stale_temporaries, write_atomically

MANIFEST = "manifest.jsonl"
SCHEMA = "refcli.output/1"
PREDICTIONS = "predictions.jsonl"
PARTIAL = f"{PREDICTIONS}.partial"
SHEET = "contact_sheet.png"
INSPECTION, INSPECTION_SCHEMA = "inspection.json", "refcli.inspection/1"
"""The list of the drawings of `inspect-data`."""
DRAWINGS, MASKS, SCENES = "overlays", "masks", "scenes"
LABELS = "labels"
"""The folder of the label files in `yolo/`."""
SUBFOLDERS = (DRAWINGS, MASKS, SCENES, f"yolo/{LABELS}", *WRITERS)
"""A folder follows the folders in it."""
OWN_FILE = re.compile(
    rf"{re.escape(PREDICTIONS)}(\.partial)?|{re.escape(SHEET)}|({'|'.join(WRITERS)})/({LABELS}/)?[^/\\]{{1,250}}\.(csv|jsonl?|txt|xml|yaml)"
    rf"|({DRAWINGS}|{MASKS})/\d{{5,}}-[a-z0-9-]{{1,200}}\.(png|jpg)|{SCENES}/scene-\d{{3,}}\.png",
    re.ASCII,
)
"""All names that a manifest may list; any other name in one is ignored."""
MAX_LINE_BYTES = 1 << 20
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class OutputManifest:
    """`manifest.jsonl`: a header with the settings, then a line with the names of each answer's files.

    A line is written before its files, so that a run killed at any moment leaves no unlisted file.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MANIFEST
        self._file: BinaryIO | None = None

    def create(self, settings: Mapping[str, Any], *, replace: bool = False) -> None:
        """Start a new manifest.

        Args:
            settings: the settings that the answers depend on.
            replace: an existing manifest, whose files have been removed, may be replaced.

        Raises:
            UsageError: another file has that name.
            OSError: it cannot be written.
        """
        if os.path.lexists(self.path) and not (replace and is_real_file(self.path)):
            raise _foreign_file(self.path)
        header = {"schema": SCHEMA, "settings": settings, "files": [PREDICTIONS, PARTIAL]}
        write_atomically(self.path, json.dumps(header).encode() + b"\n")
        self.reopen()

    def read(self) -> dict[str, Any]:
        """The settings of the run that wrote the manifest.

        Raises:
            UsageError: there is no manifest.
            DataError: it is damaged, or a link.
        """
        header = _record(next(self._lines(), b""))
        if header is None or header.get("schema") != SCHEMA or not isinstance(header.get("settings"), dict):
            raise DataError(
                "this is not the manifest of an output folder", where=str(self.path), hint="choose another --out"
            )
        settings: dict[str, Any] = header["settings"]
        return settings

    def listed(self) -> Iterator[str]:
        """The listed names, relative to the folder, with slashes; an incomplete last line is ignored.

        Raises:
            DataError: the manifest is damaged.
        """
        for line in self._lines():
            names = (_record(line) or {}).get("files")
            if isinstance(names, list):
                yield from (name for name in names if isinstance(name, str) and OWN_FILE.fullmatch(name))

    def reopen(self) -> None:
        """Append to the existing manifest.

        Raises:
            DataError: it is damaged.
            OSError: it cannot be written.
        """
        self._file = append_to(self.path, sum(map(len, self._lines())))

    def announce(self, names: Iterable[str]) -> None:
        """List files that are about to be written.

        Raises:
            UsageError: an unlisted file has one of these names.
            OSError: the manifest cannot be written.
        """
        new = set(names)
        if existing := {name for name in new if os.path.lexists(self.folder / name)}:
            new -= existing
            if foreign := existing.difference(self.listed()):
                raise _foreign_file(self.folder / min(foreign))
        if new:
            assert self._file is not None
            self._file.write(json.dumps({"files": sorted(new)}).encode() + b"\n")
            self._file.flush()

    def remove_files(self) -> None:
        """Remove the listed files, their stale temporaries, and the folders that are empty afterwards.

        Links are neither followed nor removed.

        Raises:
            OSError: the system does not allow it.
        """
        for name in self.listed():
            path = path_inside(self.folder, name)
            if path is not None and is_real_file(path):
                path.unlink()
        remove_stale_temporaries(self.folder)
        for folder in (self.folder / name for name in SUBFOLDERS):
            if is_real_folder(folder):
                remove_stale_temporaries(folder)
                if not any(folder.iterdir()):
                    folder.rmdir()

    def close(self) -> None:
        """Stop writing."""
        if self._file is not None:
            self._file.close()

    def _lines(self) -> Iterator[bytes]:
        """The complete lines, with their line ends."""
        if not os.path.lexists(self.path):
            raise UsageError(
                f"there is no {MANIFEST}, the list of files to complete or remove",
                where=str(self.folder),
                hint="choose another --out, or empty the folder yourself",
            )
        if not is_real_file(self.path):
            raise DataError("the manifest is not a regular file", where=str(self.path), hint="choose another --out")
        with self.path.open("rb") as file:
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                yield line
            if len(line) == MAX_LINE_BYTES:
                raise DataError("a line of the manifest is too long", where=str(self.path), hint="choose another --out")


def is_output_folder(path: Path) -> bool:
    """Whether refcli wrote answers or drawings there, with or without a manifest (older versions)."""
    if is_real_file(path / MANIFEST):
        header = _record(_start(path / MANIFEST))
        return header is not None and header.get("schema") == SCHEMA
    if is_real_file(path / INSPECTION) and f'"{INSPECTION_SCHEMA}"'.encode() in _start(path / INSPECTION, num_lines=2):
        return True
    has_lines = is_real_file(path / PREDICTIONS) or is_real_file(path / PARTIAL)
    return has_lines and is_real_folder(path / DRAWINGS) and is_real_folder(path / MASKS)


def _start(path: Path, num_lines: int = 1) -> bytes:
    """The first lines of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return b"".join(file.readline(MAX_LINE_BYTES) for _ in range(num_lines))
    except OSError:
        return b""


def is_real_file(path: Path) -> bool:
    """Whether this is a regular file and not a link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def is_real_folder(path: Path) -> bool:
    """Whether this is a folder and not a link."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def create_file(path: Path) -> BinaryIO:
    """Open a new file for writing; never an existing one, and never through a link.

    Raises:
        UsageError: the name is taken.
        OSError: the system does not allow it.
    """
    try:
        return path.open("xb")
    except FileExistsError as error:
        raise _foreign_file(path) from error


def append_to(path: Path, size: int) -> BinaryIO:
    """Open a file to append after its first `size` bytes; the rest is removed. Links are not followed.

    Raises:
        OSError: the system refuses, or it is a link.
    """
    file = os.fdopen(os.open(path, os.O_WRONLY | _NO_LINK), "wb")
    file.truncate(size)
    file.seek(size)
    return file


def _foreign_file(path: Path) -> UsageError:
    return UsageError(
        "a file that refcli did not write has this name",
        where=str(path),
        hint="move it away (a run that has started continues with --resume), or choose another --out",
    )


def _record(line: bytes) -> dict[str, Any] | None:
    """The object in a line, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
