"""Find the images in a folder or of a pattern, and count skipped entries."""

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
"""Suffixes of image formats unknown to Pillow."""
OTHER_DATA = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats known to Pillow that are not images."""
SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", ".ds_store", "thumbs.db", "desktop.ini"}
)
"""Entries that operating systems add to a user's folders."""
MAX_NAMED = 5
"""Suffixes or paths that a note names."""


def is_empty_folder(folder: Path) -> bool:
    """Whether a folder has no entries besides those that operating systems add.

    Raises:
        OSError: it cannot be listed.
    """
    return all(entry.name.lower() in SYSTEM_NAMES for entry in folder.iterdir())


@cache
def readable_suffixes() -> frozenset[str]:
    """Suffixes of the image formats that the installed Pillow reads, in lower case with their full stop."""
    Image.init()
    opened = (Image.OPEN.keys() | OPENED_AS_JPEG) & DECODER_BYTES.keys()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in opened)


@cache
def unreadable_suffixes() -> frozenset[str]:
    """Suffixes of image formats that are not supported."""
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name not in OTHER_DATA}
    return (UNREADABLE_IMAGES | known) - readable_suffixes()


class Skipped:
    """Entries that a search skipped."""

    def __init__(self) -> None:
        self.unreadable: Counter[str] = Counter()
        """Images in unsupported formats, by suffix."""
        self.other_files: Counter[str] = Counter()
        """Files whose suffix is not that of an image, by suffix."""
        self.hidden = 0
        self.outputs: list[str] = []
        """Folders and files that refcli wrote."""
        self.links: list[str] = []
        """Linked folders."""
        self.special: list[str] = []
        """Pipes, devices and sockets with the name of an image."""
        self.broken: list[str] = []
        """Broken links."""
        self.closed: list[str] = []
        """Folders that cannot be read."""

    def __str__(self) -> str:
        parts = (
            _counted("image{} in unsupported formats", sum(self.unreadable.values()))
            + _suffixes(self.unreadable, end="; convert to JPEG or PNG"),
            _counted("other file{}", sum(self.other_files.values())) + _suffixes(self.other_files),
            _counted("hidden or system entr{}", self.hidden, endings=("y", "ies")),
            _counted("output{} of refcli", len(self.outputs)) + _names(self.outputs),
            _counted("linked folder{}", len(self.links)) + _names(self.links, end="; give it as input to search it"),
            _counted("special file{}", len(self.special)) + _names(self.special),
            _counted("broken link{}", len(self.broken)) + _names(self.broken),
            _counted("folder{} that cannot be read", len(self.closed)) + _names(self.closed),
        )
        return ", ".join(part for part in parts if part)


def images_below(folder: Path, skipped: Skipped, *, exclude: Path | None = None) -> list[str]:
    """The images in a folder and its sub-folders, sorted by path.

    An image is recognised by its suffix. Hidden entries, those of operating systems, output folders of refcli and
    linked folders are skipped; linked files are read.

    Args:
        folder: the folder to search, whatever its name; in an output folder, drawings and masks are skipped.
        skipped: collects the skipped entries.
        exclude: a folder that is not searched: the output folder.
    """
    found: list[str] = []
    if exclude is not None and _is_same(folder, exclude):
        skipped.outputs.append(str(folder))
        return found
    for path, mode in _walk(folder, skipped, exclude=exclude):
        suffix = path.suffix.lower()
        if suffix in readable_suffixes():
            if mode is None or stat.S_ISREG(mode):  # a broken link is answered with an error
                found.append(str(path))
            else:
                skipped.special.append(str(path))
        elif suffix in unreadable_suffixes():
            skipped.unreadable[suffix] += 1
        else:
            skipped.other_files[suffix] += 1
    return sorted(found)


def files_matching(pattern: str, skipped: Skipped, *, exclude: Path | None = None) -> list[str]:
    """The files that match a pattern (`*`, `?`, `[a-z]`, `**` for any folders), sorted.

    A part of the pattern that exists literally is taken literally. `*` matches neither hidden names nor folders.

    Raises:
        UsageError: there are none.
    """
    found: set[str] = set()
    for path in _matches(Path(), Path(pattern).parts, skipped, exclude):
        mode = file_mode(path)
        if mode is None:
            skipped.broken += [str(path)] * _exists(path)
        elif stat.S_ISREG(mode):
            found.add(str(path))
        elif not stat.S_ISDIR(mode):
            skipped.special.append(str(path))
    if not found:
        hint = f"skipped: {skipped}" if str(skipped) else "check the pattern"
        raise UsageError("the pattern matches no file", where=pattern, hint=hint)
    return sorted(found)


def _walk(folder: Path, skipped: Skipped, *, exclude: Path | None) -> Iterator[tuple[Path, int | None]]:
    """(path, type) of all entries that are not folders; the type of a broken link is None."""
    visited: set[tuple[int, int]] = set()
    is_output = is_output_folder(folder)
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
            with os.scandir(here) as scanned:
                entries = list(scanned)
        except OSError:
            skipped.closed.append(str(here))
            continue
        if (facts.st_dev, facts.st_ino) in visited:  # mounted twice, or reached through a junction
            continue
        visited.add((facts.st_dev, facts.st_ino))
        for entry in entries:
            path, mode = Path(entry.path), _mode_of(entry)
            if _is_hidden(path):
                skipped.hidden += 1
            elif is_output and here == folder and path.name in (DRAWINGS, MASKS, SHEET):
                skipped.outputs.append(str(path))
            elif mode is None or not stat.S_ISDIR(mode):
                yield path, mode
            elif _is_searched(path, skipped, exclude):
                waiting.append(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES


def _mode_of(entry: os.DirEntry[str]) -> int | None:
    """The result of `file_mode`, without another system call if the scan already knows the type."""
    try:
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
    except OSError:
        pass
    return file_mode(Path(entry.path))


def _is_searched(path: Path, skipped: Skipped, exclude: Path | None) -> bool:
    """Whether a folder is searched."""
    if path.is_symlink():
        skipped.links.append(str(path))
    elif (exclude is not None and _is_same(path, exclude)) or is_output_folder(path):
        skipped.outputs.append(str(path))
    else:
        return True
    return False


def _matches(here: Path, parts: Sequence[str], skipped: Skipped, exclude: Path | None) -> Iterator[Path]:
    if not parts:
        yield here
        return
    head, *rest = parts
    if not glob.has_magic(head) or _exists(here / head):
        yield from _matches(here / head, rest, skipped, exclude)
    elif head == "**":
        while rest and rest[0] == head:
            del rest[0]
        for folder in _folders(here, skipped, exclude):
            yield from _matches(folder, rest or ["*"], skipped, exclude)
    else:
        for path in _entries(here):
            if fnmatch.fnmatch(path.name, head) and (head.startswith(".") or not path.name.startswith(".")):
                if rest and exclude is not None and _is_same(path, exclude):
                    skipped.outputs.append(str(path))
                else:
                    yield from _matches(path, rest, skipped, exclude)


def _folders(here: Path, skipped: Skipped, exclude: Path | None) -> Iterator[Path]:
    """A folder and all folders below it, without hidden ones and those of operating systems."""
    waiting = [here]
    while waiting:
        folder = waiting.pop()
        yield folder
        for path in _entries(folder):
            if not _is_hidden(path) and is_folder(path) and _is_searched(path, skipped, exclude):
                waiting.append(path)


def _entries(here: Path) -> list[Path]:
    try:
        return sorted(here.iterdir())
    except OSError:
        return []


def file_mode(path: Path) -> int | None:
    """Type and permissions of the target of a path; None if there is none."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def is_folder(path: Path) -> bool:
    """Whether the target of a path is a folder."""
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
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_NAMED]
    return _listed([f"{suffix or 'no suffix'} {count:,}" for suffix, count in most], len(counts), end)


def _names(names: Sequence[str], *, end: str = "") -> str:
    return _listed(sorted(names)[:MAX_NAMED], len(names), end)


def _listed(named: Sequence[str], count: int, end: str) -> str:
    return f" ({', '.join(named)}{', ...' if count > len(named) else ''}{end})" if named else ""
