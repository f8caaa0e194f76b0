"""Image roots: an index, by file name, of all files below folders and in archives."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote

from refcli.data.reading.archives import is_archive, open_archive
from refcli.data.reading.images import ImageFacts, probe
from refcli.data.sources.record import RawImage
from refcli.errors import DataError, ImageError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MISSING, OTHER_SIZE, UNREADABLE = "missing_image", "image_of_another_size", "unusable_picture"
"""Kinds of problems: reasons why an image was not found."""
_URL_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^/]*/")
"""The beginning of a URL, up to the path; its scheme has two letters or more, unlike a Windows drive."""
_DRIVE = re.compile(r"[A-Za-z]:")
_SPLIT_FOLDER = re.compile(r"train|val|test|dev", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One image: a file, or a member of an archive."""

    path: Path | None
    archive: Path | None = None
    member: str | None = None
    is_by_name_only: bool = False
    """The folders of the image's name do not match those of the file; see `ImageRoots.find`."""


class _Place(NamedTuple):
    container: int
    """Index of the root or archive."""
    relative: str
    """Path below the root, or the member's name."""


@dataclass(frozen=True)
class _Container:
    path: Path
    is_archive: bool
    is_root: bool = True
    """Whether it is one of the roots."""

    @property
    def folders(self) -> list[str]:
        """The folders on the path to its files; an archive counts as a folder of its name."""
        path = os.path.abspath(self.path)  # noqa: PTH100 - links stay
        parts = comparable_name(path.replace(os.sep, "/")).split("/")
        return [*parts[:-1], parts[-1].split(".")[0]] if self.is_archive else parts


_Index = dict[str, list[_Place]]
"""Comparable file name -> places, in no particular order."""


def comparable_name(name: str) -> str:
    """A name in comparable form: without regard to case and the composition of accents."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _stem(name: str) -> str:
    """A file name without its suffix."""
    return name.rpartition(".")[0] or name


def _other_spellings(names: Sequence[str]) -> list[str]:
    """The paths of names that are written as Windows paths, URLs or percent-encoded; the given names are excluded."""
    found: list[str] = []
    for name in names:
        path, _, query = name.replace("\\", "/").partition("?")
        queried = parse_qs(query).get("d", [])  # Label Studio's /data/local-files/?d=PATH
        if _URL_START.match(path):
            path = path.partition("#")[0]
        path = _DRIVE.sub("", _URL_START.sub("", path, count=1), count=1)
        for one in (path, *queried):
            unquoted = _unquoted(one)
            twice = [other for name in unquoted for other in _unquoted(name)]
            with_blanks = [other.replace("+", " ") for other in (one, *unquoted) if "+" in other]
            found += [one, *unquoted, *twice, *with_blanks, quote(one, errors="replace")]
    return [name for name in dict.fromkeys(found) if name not in names]


def _unquoted(name: str) -> list[str]:
    if "%" not in name:
        return []
    try:
        return [unquote(name, errors="strict")]
    except UnicodeDecodeError:
        return [unquote(name, encoding="latin-1")]


def must_fit(image: RawImage) -> bool:
    """Whether a file must have the annotated size to be this image; not for COCO, whose file names are unique."""
    return bool(image.width and image.height) and not image.key.startswith("coco:")


class ImageRoots:
    """The files below folders and in archives, by name; see `open`."""

    def __init__(self, containers: Sequence[_Container], files: _Index, unreadable: dict[Path, str]) -> None:
        self._containers = tuple(containers)
        self._folders = [container.folders for container in containers]
        self._files = files
        self._members: _Index | None = None
        self._stems: dict[str, str] | None = None
        """File name without suffix -> comparable file name; built when an image is missing."""
        self._facts: dict[_Place, ImageFacts | None] = {}
        self.unreadable = unreadable
        """Folders, links and archives below the roots that could not be opened -> reason. Archives are opened on the
        first search for an image that is not a plain file."""

    @classmethod
    def open(cls, roots: Sequence[Path]) -> ImageRoots:
        """Index the roots: archives, and directories with all folders below them and the archives directly in them.

        Hidden files and folders are ignored. Links are followed; a folder that is reached twice is read once, at its
        real place if that is below the roots.

        Raises:
            DataError: a root does not exist, cannot be read, or is a file but not an archive.
        """
        scan = _Scan()
        containers = [_Container(root, is_archive=not root.is_dir()) for root in roots]
        for number, container in enumerate(containers):
            if not container.is_archive:
                scan.walk(container.path, number)
            elif not is_archive(container.path):
                raise DataError(
                    "this is neither a folder nor a zip or tar archive"
                    if container.path.exists()
                    else "there is no such folder or archive",
                    where=str(container.path),
                    hint="name a folder, zip or tar that holds the images",
                )
        loose = [path for path in scan.archives if path not in roots]
        containers += [_Container(path, is_archive=True, is_root=False) for path in loose]
        return cls(containers, scan.files, scan.unreadable)

    @property
    def has_archives(self) -> bool:
        """Whether an image may be found in an archive."""
        return any(container.is_archive for container in self._containers)

    def find(self, image: RawImage, *, is_unique: Callable[[RawImage], bool] | None = None) -> FoundImage | None:
        """Find an image; None if it is missing.

        Priorities: plain files before archives, the same case before another, then the names in their order. Accents
        compare equal however they are composed. If a name has folders, the folders of the file must match: either all
        folders of the name end the file's path, including that of the root, or the folders of the name end in the
        file's path below its root (for a file directly in the root, in the root's name). Of several matching files,
        the one at the given relative path wins, else the one with the most trailing folders in common, else the first
        by root, depth and path. A plain file without the annotated size is skipped (see `must_fit`); for COCO images,
        whose file names are unique, the size only decides between equal matches. If no name is found, names are also
        read as Windows paths, URLs and percent-encoded names.

        If `is_unique` is given and there is a single root, a file directly in it is found by its name only, whatever
        the folders of the image's name, provided that no other file and no other image has that file name and the root
        is not the folder of a split.

        Args:
            image: the image.
            is_unique: whether no other image of the data set has the same file name.

        Raises:
            DataError: an archive that was given as a root is broken or unsafe.
        """
        for names in (image.names, _other_spellings(image.names)):
            wanted = list(filter(None, map(_parts, names)))
            found = self._search(wanted, image, self._files)
            if found is None and wanted and self.has_archives:
                if self._members is None:
                    self._members = self._list_archives()
                found = self._search(wanted, image, self._members)
            if found is not None:
                return found
        return self._by_name_only(image, is_unique) if is_unique is not None else None

    def why_missing(self, image: RawImage) -> tuple[str, str]:
        """The reason why `find` found nothing: the kind of problem, and details."""
        name = image.names[0]
        wanted = [parts for one in (*image.names, *_other_spellings(image.names)) if (parts := _parts(one))]
        for parts in wanted:
            ordered = self._ordered(
                self._files.get(comparable_name(parts[-1]), []), [comparable_name(part) for part in parts]
            )
            if ordered:
                return self._why_rejected(ordered[0], name, image)
        for parts in wanted:
            if places := self._places(comparable_name(parts[-1])):
                return MISSING, f"{name} (there is {places[0].relative}, in another folder)"
        if self._stems is None:
            self._stems = {_stem(key): key for key in (*(self._members or ()), *self._files)}
        for parts in wanted:
            if other := self._stems.get(_stem(comparable_name(parts[-1]))):
                return MISSING, f"{name} (there is {self._places(other)[0].relative})"
        return MISSING, name

    def _places(self, key: str) -> list[_Place]:
        """The files of a name; without any, its members of the archives that are already listed."""
        return self._files.get(key) or (self._members or {}).get(key, [])

    def _why_rejected(self, place: _Place, name: str, image: RawImage) -> tuple[str, str]:
        path = self._containers[place.container].path / place.relative
        try:
            size = probe(path).size
        except ImageError as error:
            return UNREADABLE, f"{name}: {error.message}"
        return OTHER_SIZE, f"{name} is {size[0]} x {size[1]}, its annotation says {image.width} x {image.height}"

    def _by_name_only(self, image: RawImage, is_unique: Callable[[RawImage], bool]) -> FoundImage | None:
        roots = [container for container in self._containers if container.is_root]
        if len(roots) != 1 or roots[0].is_archive or _SPLIT_FOLDER.search(roots[0].path.name):
            return None
        for name in (*image.names, *_other_spellings(image.names)):
            parts = _parts(name)
            places = self._files.get(comparable_name(parts[-1]), []) if parts else []
            if len(places) != 1 or "/" in places[0].relative or (must_fit(image) and not self._fits(places[0], image)):
                continue
            if is_unique(image):
                return FoundImage(path=roots[0].path / places[0].relative, is_by_name_only=True)
        return None

    def _search(self, wanted: Sequence[list[str]], image: RawImage, index: _Index) -> FoundImage | None:
        for same_case in (True, False):
            for parts in wanted:
                places = index.get(comparable_name(parts[-1]), [])
                if same_case:
                    places = [place for place in places if place.relative.rpartition("/")[2] == parts[-1]]
                best = self._best(places, [comparable_name(part) for part in parts], image)
                if best is not None:
                    return self._found(best)
        return None

    def _best(self, places: list[_Place], parts: list[str], image: RawImage) -> _Place | None:
        ordered = self._ordered(places, parts)
        if must_fit(image):
            return next((place for place in ordered if self._fits(place, image)), None)
        equals = [place for place in ordered if self._rank(place, parts) == self._rank(ordered[0], parts)]
        if len(equals) > 1 and image.width and image.height:
            return next((place for place in equals if self._fits(place, image)), equals[0])
        return equals[0] if equals else None

    def _ordered(self, places: list[_Place], parts: list[str]) -> list[_Place]:
        """The places that match a name, the best first."""
        ranks = {place: rank for place in places if (rank := self._rank(place, parts)) is not None}
        return sorted(
            ranks, key=lambda place: (ranks[place], place.container, place.relative.count("/"), place.relative)
        )

    def _rank(self, place: _Place, parts: list[str]) -> tuple[bool, int] | None:
        """Lower is better: (whether the path differs, minus the number of common trailing folders); None: no match."""
        own = comparable_name(place.relative).split("/")
        folders = [*self._folders[place.container], *own[:-1]]
        agreeing = 0
        for folder, wanted in zip(reversed(folders), reversed(parts[:-1]), strict=False):
            if folder != wanted:
                break
            agreeing += 1
        if agreeing < min(len(parts) - 1, max(len(own) - 1, 1)):
            return None
        return own != parts, -agreeing

    def _fits(self, place: _Place, image: RawImage) -> bool:
        """Whether a file has the annotated size, before or after EXIF rotation; members of archives always fit."""
        container = self._containers[place.container]
        if container.is_archive:
            return True
        if place not in self._facts:
            try:
                self._facts[place] = probe(container.path / place.relative)
            except ImageError:
                self._facts[place] = None
        facts = self._facts[place]
        return facts is not None and (image.width, image.height) in (facts.size, facts.raw_size)

    def _found(self, place: _Place) -> FoundImage:
        container = self._containers[place.container]
        if container.is_archive:
            return FoundImage(path=None, archive=container.path, member=place.relative)
        return FoundImage(path=container.path / place.relative)

    def _list_archives(self) -> _Index:
        """The members of all archives; a broken archive that is not a root itself is recorded as unreadable."""
        index: _Index = {}
        for number, container in enumerate(self._containers):
            if not container.is_archive:
                continue
            try:
                with open_archive(container.path) as archive:
                    names = archive.names()
            except DataError as error:
                if container.is_root:
                    raise
                self.unreadable[container.path] = error.message
                continue
            _add(index, number, (name for name in names if not _is_hidden(name)))
        return index


@dataclass
class _Scan:
    files: _Index = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    _visited: set[tuple[int, int]] = field(default_factory=set)

    def walk(self, root: Path, number: int) -> None:
        """Add the files below a root, breadth first, linked folders last; files are neither opened nor stat'ed."""
        folders, linked = deque([""]), deque[str]()
        while folders or linked:
            prefix = (folders or linked).popleft()
            try:
                facts = (root / prefix).stat()
                if (facts.st_dev, facts.st_ino) in self._visited:
                    continue
                self._visited.add((facts.st_dev, facts.st_ino))
                with os.scandir(root / prefix) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                if not prefix:
                    raise DataError(
                        f"the folder cannot be read: {error.strerror}", where=str(root), hint="check its permissions"
                    ) from error
                self.unreadable[root / prefix] = str(error.strerror)
                continue
            _add(self.files, number, (prefix + name for name in self._files_of(entries, root, prefix, folders, linked)))

    def _files_of(
        self, entries: Iterable[os.DirEntry[str]], root: Path, prefix: str, folders: deque[str], linked: deque[str]
    ) -> Iterable[str]:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # a link to itself, or through a folder without permission
                self.unreadable[root / prefix / entry.name] = str(error.strerror)
                continue
            if is_folder:
                (linked if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
            elif is_file and not prefix and entry.name.lower().endswith(ARCHIVE_SUFFIXES):
                self.archives.append(root / entry.name)
            elif is_file:
                yield entry.name


def _add(index: _Index, container: int, names: Iterable[str]) -> None:
    for name in names:
        index.setdefault(comparable_name(name.rpartition("/")[2]), []).append(_Place(container, name))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
