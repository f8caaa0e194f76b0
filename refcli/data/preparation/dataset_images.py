"""Where the images of a data set are: below the given roots, or, out of archives, in the store."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from refcli.data.preparation.image_roots import MISSING, UNREADABLE, FoundImage, ImageRoots, comparable_name
from refcli.data.reading.archives import open_archive
from refcli.data.sources.record import RawImage
from refcli.files import write_atomically


class Place(NamedTuple):
    """Where one image is."""

    image: str
    """Path relative to the image root of the data set."""
    path: Path | None
    """The file; None if images are not looked for."""
    is_by_name_only: bool = False
    """The folders of the image's name lead elsewhere; see `ImageRoots.find`."""


class FileNames:
    """Which file names the images of a data set have.

    Args:
        images: gives them, as often as it is called; called when it first matters.
    """

    def __init__(self, images: Callable[[], Iterable[RawImage]]) -> None:
        self._images = images
        self._keys: dict[str, str | None] | None = None
        """File name -> key of the only image that has it, or None for several."""

    def is_alone(self, image: RawImage) -> bool:
        """Whether no other image has one of the file names of this one."""
        if self._keys is None:
            self._keys = {}
            for one in self._images():
                for name in _file_names(one):
                    self._keys[name] = one.key if self._keys.get(name, one.key) == one.key else None
        return all(self._keys.get(name) == image.key for name in _file_names(image))


def _file_names(image: RawImage) -> set[str]:
    return {comparable_name(name.rpartition("/")[2]) for name in image.names}


@dataclass(frozen=True)
class Pictures:
    """The images of one data set."""

    roots: ImageRoots | None
    """None: images are not looked for, and every record keeps the name that its source prefers."""
    base: Path | None
    """The image root that the manifest names; None for the default, `<store>/<data set>`."""
    extracted: dict[str, Path]
    """Key of an image -> the file that was taken out of an archive."""
    file_names: FileNames

    @classmethod
    def unlooked(cls) -> Pictures:
        """Images that are not looked for."""
        return cls(None, None, {}, FileNames(tuple))

    @classmethod
    def below(
        cls, roots: Sequence[Path], images: Iterable[RawImage], *, extract_to: Path, file_names: FileNames
    ) -> Pictures:
        """Look through directories and archives; what lies in archives is copied out first.

        Args:
            roots: directories, zips or tars.
            images: the images wanted; read only if there are archives.
            extract_to: where images out of archives go.
            file_names: of all images of the data set, wanted or not.
        """
        roots = [root.resolve() for root in roots]
        index = ImageRoots.open(roots)
        extracted: dict[str, Path] = {}
        if index.has_archives:
            wanted = {image.key: (image, found) for image in images if (found := index.find(image)) and found.archive}
            extracted = extract_images(wanted.values(), extract_to.resolve())
        places = [root for root in roots if root.is_dir()]
        if index.has_archives or not places:
            places.append(extract_to.resolve())
        return cls(index, Path(os.path.commonpath(places)), extracted, file_names)

    @property
    def unreadable(self) -> Mapping[Path, str]:
        """Folders and archives that could not be looked through, and why."""
        return self.roots.unreadable if self.roots else {}

    def place(self, image: RawImage) -> Place | None:
        """Where an image is; None if it is nowhere, or at a path that is not UTF-8."""
        if self.roots is None or self.base is None:
            return Place(image.names[0], None)
        path = self.extracted.get(image.key)
        is_by_name_only = False
        if path is None:
            found: FoundImage | None = self.roots.find(image, is_alone=self.file_names.is_alone)
            path = found.path if found else None
            is_by_name_only = found is not None and found.is_by_name_only
        if path is None:
            return None
        name = path.relative_to(self.base).as_posix()
        return None if _is_no_unicode(name) else Place(name, path, is_by_name_only)

    def why_missing(self, image: RawImage) -> tuple[str, str]:
        """Why there is no place: the kind of problem, and what there is instead."""
        if self.roots is None:
            return MISSING, image.names[0]
        found = self.extracted.get(image.key)
        if found is None and (place := self.roots.find(image, is_alone=self.file_names.is_alone)) is not None:
            found = place.path
        if found is not None:
            return UNREADABLE, f"{image.names[0]} (the path {found} is not UTF-8: rename the file or folder)"
        return self.roots.why_missing(image)


def _is_no_unicode(text: str) -> bool:
    """Whether the text has bytes of a file name that are no UTF-8, which no column of texts can hold."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


MAX_MEMBER_BYTES = 200_000_000
"""Larger members are refused; no picture of a known data set comes near it."""
MAX_STEM = 120
"""Characters of a file name, well below every file system's limit."""
MAX_SUFFIX = 8
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


def extract_images(found: Iterable[tuple[RawImage, FoundImage]], out: Path) -> dict[str, Path]:
    """Copy pictures out of archives: each archive is read once, front to back, and no file is ever half there.

    A file that is already there with the member's size is left as it is.

    Args:
        found: pictures and where they are; plain files are passed over.
        out: made where it does not exist; see `safe_path` for the names below it.

    Returns:
        Key of the image -> its file, for all that came from archives.

    Raises:
        DataError: an archive is broken or unsafe, or a member is larger than `MAX_MEMBER_BYTES`.
    """
    wanted: dict[Path, dict[str, list[RawImage]]] = {}
    for image, place in found:
        if place.archive is not None and place.member is not None:
            wanted.setdefault(place.archive, {}).setdefault(place.member, []).append(image)
    extracted: dict[str, Path] = {}
    for archive_path, members in wanted.items():
        with open_archive(archive_path) as archive:
            for member in archive.names():
                if member not in members:
                    continue
                content = archive.read(member, max_bytes=MAX_MEMBER_BYTES)
                for image in members[member]:
                    path = out / safe_path(image)
                    _write(path, content)
                    extracted[image.key] = path
    return extracted


def safe_path(image: RawImage) -> Path:
    """The relative path `<family>/<file name>` of a picture, which no other picture has.

    The family is the part of the key before the colon, the file name that of `names[0]`. Where the rest of the key does
    not already tell the name (as 9 does for COCO_train2014_000000000009.jpg), or anything but ASCII letters, digits and
    "._-" had to be replaced, a digest of the key is appended.
    """
    family, _, identity = image.key.rpartition(":")
    name = image.names[0].rpartition("/")[2]
    stem, dot, suffix = _UNSAFE.sub("_", name).rpartition(".")
    if not dot or not stem:
        stem, dot, suffix = stem + suffix, "", ""
    stem = stem.lstrip(".")[:MAX_STEM] or "picture"
    suffix = suffix[:MAX_SUFFIX]
    folder = _UNSAFE.sub("_", family).lstrip(".")[:MAX_STEM] or "pictures"
    number = _LAST_NUMBER.search(stem)
    is_told = identity == name or (identity.isdecimal() and number is not None and int(number[1]) == int(identity))
    if not is_told or f"{folder}/{stem}{dot}{suffix}" != f"{family}/{name}":
        stem += "-" + hashlib.sha256(image.key.encode()).hexdigest()[:12]
    return Path(folder) / f"{stem}{dot}{suffix}"


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
