"""The images that a folder or a pattern stands for, and what in it is left out."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from refcli.data.reading.decoding_memory import DECODER_BYTES
from refcli.errors import UsageError
from refcli.inference.output_manifest import DRAWINGS, MASKS, SHEET, is_output_folder

OPENED_AS_JPEG = frozenset({"MPO"})
# fmt: off
UNREADABLE_IMAGES = frozenset({
    ".heic", ".heif", ".hif", ".heics", ".heifs", ".jxl", ".jxr", ".svg", ".svgz", ".pdf", ".eps", ".ai", ".xcf",
    ".kra", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf",
    ".raf", ".rw2", ".pef", ".raw", ".rwl", ".3fr", ".x3f",
})
# fmt: on
"""Suffixes of images that Pillow does not know by itself."""
NO_IMAGES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats of other data that Pillow has a name for."""
SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", ".ds_store", "thumbs.db", "desktop.ini"}
)
"""What operating systems put beside a user's files."""
MOST_NAMED = 5
"""So many suffixes or paths are named in a note."""


@cache
def readable_suffixes() -> frozenset[str]:
    """Suffixes of the image formats that are read with the installed Pillow, in lower case with their full stop."""
    Image.init()
    opened = (Image.OPEN.keys() | OPENED_AS_JPEG) & DECODER_BYTES.keys()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in opened)


@cache
def unreadable_suffixes() -> frozenset[str]:
    """Suffixes of images that are not read here, though they are images."""
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name not in NO_IMAGES}
    return (UNREADABLE_IMAGES | known) - readable_suffixes()


class LeftOut:
    """What a search passes by, counted."""

    def __init__(self) -> None:
        self.unreadable: Counter[str] = Counter()
        """Images of a kind that cannot be read, by suffix."""
        self.other_files: Counter[str] = Counter()
        """Files that are no images by their suffix."""
        self.hidden = 0
        self.answers: list[str] = []
        """Folders and files that refcli wrote."""
        self.links: list[str] = []
        """Linked folders."""
        self.special: list[str] = []
        """What has the name of an image and is no file: pipes, devices, sockets."""
        self.broken: list[str] = []
        """Links that lead nowhere."""
        self.closed: list[str] = []
        """Folders that cannot be read."""

    def __str__(self) -> str:
        parts = (
            _counted("image{} of a kind that cannot be read here", sum(self.unreadable.values()))
            + _suffixes(self.unreadable, end="; convert to JPEG or PNG"),
            _counted("other file{}", sum(self.other_files.values())) + _suffixes(self.other_files),
            _counted("hidden or system entr{}", self.hidden, endings=("y", "ies")),
            _counted("output{} of refcli", len(self.answers)) + _names(self.answers),
            _counted("linked folder{}", len(self.links)) + _names(self.links, end="; name it to search it"),
            _counted("special file{}", len(self.special)) + _names(self.special),
            _counted("broken link{}", len(self.broken)) + _names(self.broken),
            _counted("folder{} that cannot be read", len(self.closed)) + _names(self.closed),
        )
        return ", ".join(part for part in parts if part)


def images_below(folder: Path, left_out: LeftOut, *, without: Path | None = None) -> list[str]:
    """The images in a folder and its sub-folders, sorted by path.

    An image is known by its suffix. Left out are hidden entries and what operating systems add, folders of answers that
    refcli wrote, and linked folders; linked files are read.

    Args:
        folder: where to search, itself whatever it is called; of a folder of answers, all but its drawings and masks.
        left_out: gets what is passed by.
        without: a folder whose contents are no images to read: where the answers go.
    """
    found: list[str] = []
    if without is not None and _is_same(folder, without):
        left_out.answers.append(str(folder))
        return found
    for path, mode in _walk(folder, left_out, without=without):
        suffix = path.suffix.lower()
        if suffix in readable_suffixes():
            if mode is None or stat.S_ISREG(mode):  # a link that leads nowhere is answered with an error
                found.append(str(path))
            else:
                left_out.special.append(str(path))
        elif suffix in unreadable_suffixes():
            left_out.unreadable[suffix] += 1
        else:
            left_out.other_files[suffix] += 1
    return sorted(found)


def files_matching(pattern: str, left_out: LeftOut, *, without: Path | None = None) -> list[str]:
    """The files that a pattern (`*`, `?`, `[a-z]`, `**` for any folders) means, sorted.

    A part of the pattern that exists as it is written is no pattern. `*` does not match hidden names, and no folders.

    Raises:
        UsageError: there are none.
    """
    found: set[str] = set()
    for path in _matches(Path(), Path(pattern).parts, left_out, without):
        mode = file_mode(path)
        if mode is None:
            left_out.broken += [str(path)] * _exists(path)
        elif stat.S_ISREG(mode):
            found.add(str(path))
        elif not stat.S_ISDIR(mode):
            left_out.special.append(str(path))
    if not found:
        hint = f"left out: {left_out}" if str(left_out) else "check the pattern"
        raise UsageError("the pattern matches no file", where=pattern, hint=hint)
    return sorted(found)


def _walk(folder: Path, left_out: LeftOut, *, without: Path | None) -> Iterator[tuple[Path, int | None]]:
    """(path, type) of all entries that are no folders; None for a link that leads nowhere."""
    visited: set[tuple[int, int]] = set()
    is_answers = is_output_folder(folder)
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
            with os.scandir(here) as scanned:
                entries = list(scanned)
        except OSError:
            left_out.closed.append(str(here))
            continue
        if (facts.st_dev, facts.st_ino) in visited:  # mounted twice, or a junction
            continue
        visited.add((facts.st_dev, facts.st_ino))
        for entry in entries:
            path, mode = Path(entry.path), _mode_of(entry)
            if _is_hidden(path):
                left_out.hidden += 1
            elif is_answers and here == folder and path.name in (DRAWINGS, MASKS, SHEET):
                left_out.answers.append(str(path))
            elif mode is None or not stat.S_ISDIR(mode):
                yield path, mode
            elif _enters(path, left_out, without):
                waiting.append(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES


def _mode_of(entry: os.DirEntry[str]) -> int | None:
    """As `file_mode`; what the scan has said about an entry is not asked for again."""
    try:
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
    except OSError:
        pass
    return file_mode(Path(entry.path))


def _enters(path: Path, left_out: LeftOut, without: Path | None) -> bool:
    """Whether a folder is searched."""
    if path.is_symlink():
        left_out.links.append(str(path))
    elif (without is not None and _is_same(path, without)) or is_output_folder(path):
        left_out.answers.append(str(path))
    else:
        return True
    return False


def _matches(here: Path, parts: Sequence[str], left_out: LeftOut, without: Path | None) -> Iterator[Path]:
    if not parts:
        yield here
        return
    head, *rest = parts
    if not glob.has_magic(head) or _exists(here / head):
        yield from _matches(here / head, rest, left_out, without)
    elif head == "**":
        while rest and rest[0] == head:
            del rest[0]
        for folder in _folders(here, left_out, without):
            yield from _matches(folder, rest or ["*"], left_out, without)
    else:
        for path in _entries(here):
            if fnmatch.fnmatch(path.name, head) and (head.startswith(".") or not path.name.startswith(".")):
                if rest and without is not None and _is_same(path, without):
                    left_out.answers.append(str(path))
                else:
                    yield from _matches(path, rest, left_out, without)


def _folders(here: Path, left_out: LeftOut, without: Path | None) -> Iterator[Path]:
    """A folder and all folders below it that are neither hidden nor a system's."""
    waiting = [here]
    while waiting:
        folder = waiting.pop()
        yield folder
        for path in _entries(folder):
            if not _is_hidden(path) and is_folder(path) and _enters(path, left_out, without):
                waiting.append(path)


def _entries(here: Path) -> list[Path]:
    try:
        return sorted(here.iterdir())
    except OSError:
        return []


def file_mode(path: Path) -> int | None:
    """Type and permissions of what a path leads to; None where there is nothing."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder."""
    mode = file_mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _counted(what: str, count: int, *, endings: tuple[str, str] = ("", "s")) -> str:
    return f"{count:,} {what.format(endings[count != 1])}" if count else ""


def _suffixes(counts: Counter[str], *, end: str = "") -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
    return _listed([f"{suffix or 'no suffix'} {count:,}" for suffix, count in most], len(counts), end)


def _names(names: Sequence[str], *, end: str = "") -> str:
    return _listed(sorted(names)[:MOST_NAMED], len(names), end)


def _listed(named: Sequence[str], count: int, end: str) -> str:
    return f" ({', '.join(named)}{', ...' if count > len(named) else ''}{end})" if named else ""
