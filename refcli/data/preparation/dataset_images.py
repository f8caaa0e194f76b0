"""The images of a data set: found below the given roots, or extracted from archives into the store."""

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

MAX_MEMBER_BYTES = 200_000_000
"""Limit on the size of an archived image; images of known data sets are far smaller."""
MAX_STEM = 120
"""Characters of a file name, well below the limit of any file system."""
MAX_SUFFIX = 8
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


class Place(NamedTuple):
    """The place of one image."""

    image: str
    """Path relative to the image root of the data set."""
    path: Path | None
    """The file; None if images are not searched for."""
    is_by_name_only: bool = False
    """The folders of the image's name do not match those of the file; see `ImageRoots.find`."""


class FileNames:
    """The file names of all images of a data set, indexed on first use.

    Args:
        images: returns the images; may be called several times.
    """

    def __init__(self, images: Callable[[], Iterable[RawImage]]) -> None:
        self._images = images
        self._keys: dict[str, str | None] | None = None
        """File name -> key of the only image of that name; None if there are several."""

    def is_unique(self, image: RawImage) -> bool:
        """Whether no other image shares a file name with this one."""
        if self._keys is None:
            self._keys = {}
            for one in self._images():
                for name in _file_names(one):
                    self._keys[name] = one.key if self._keys.get(name, one.key) == one.key else None
        return all(self._keys.get(name) == image.key for name in _file_names(image))


def _file_names(image: RawImage) -> set[str]:
    return {comparable_name(name.rpartition("/")[2]) for name in image.names}


@dataclass(frozen=True)
class DatasetImages:
    """The images of one data set."""

    roots: ImageRoots | None
    """None: images are not searched for, and every record keeps the name that its source prefers."""
    base: Path | None
    """The image root for the manifest; None for the default, `<store>/<data set>`."""
    extracted: dict[str, Path]
    """Key of an image -> its file, extracted from an archive."""
    file_names: FileNames

    @classmethod
    def not_searched(cls) -> DatasetImages:
        """Images that are not searched for."""
        return cls(None, None, {}, FileNames(tuple))

    @classmethod
    def below(
        cls, roots: Sequence[Path], images: Iterable[RawImage], *, extract_to: Path, file_names: FileNames
    ) -> DatasetImages:
        """Index directories and archives; images in archives are extracted first.

        Args:
            roots: directories, zips or tars.
            images: the wanted images; iterated only if there are archives.
            extract_to: folder for images from archives.
            file_names: file names of all images of the data set, wanted or not.
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
        """Folders and archives that could not be read -> reason."""
        return self.roots.unreadable if self.roots else {}

    def place(self, image: RawImage) -> Place | None:
        """The place of an image; None if it is missing or its path is not UTF-8."""
        if self.roots is None or self.base is None:
            return Place(image.names[0], None)
        path = self.extracted.get(image.key)
        is_by_name_only = False
        if path is None:
            found: FoundImage | None = self.roots.find(image, is_unique=self.file_names.is_unique)
            path = found.path if found else None
            is_by_name_only = found is not None and found.is_by_name_only
        if path is None:
            return None
        name = path.relative_to(self.base).as_posix()
        return None if _has_surrogates(name) else Place(name, path, is_by_name_only)

    def why_missing(self, image: RawImage) -> tuple[str, str]:
        """The reason why `place` found nothing: the kind of problem, and details."""
        if self.roots is None:
            return MISSING, image.names[0]
        found = self.extracted.get(image.key)
        if found is None and (place := self.roots.find(image, is_unique=self.file_names.is_unique)) is not None:
            found = place.path
        if found is not None:
            return UNREADABLE, f"{image.names[0]} (the path {found} is not UTF-8: rename the file or folder)"
        return self.roots.why_missing(image)


def _has_surrogates(text: str) -> bool:
    """Whether a file name has bytes that are not UTF-8, which a text column cannot hold."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def extract_images(
    found: Iterable[tuple[RawImage, FoundImage]], out: Path, *, max_bytes: int = MAX_MEMBER_BYTES
) -> dict[str, Path]:
    """Extract images from archives: each archive is read once, front to back, and files appear atomically.

    An existing file of the member's size is kept.

    Args:
        found: images and their places; plain files are ignored.
        out: the folder, created if missing; see `safe_path` for the names in it.
        max_bytes: limit on the size of a member.

    Returns:
        Key of the image -> its file, for all images in archives.

    Raises:
        DataError: an archive is broken or unsafe, or a member is larger than `max_bytes`.
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
                content = archive.read(member, max_bytes=max_bytes)
                for image in members[member]:
                    path = out / safe_path(image)
                    _write(path, content)
                    extracted[image.key] = path
    return extracted


def safe_path(image: RawImage) -> Path:
    """The relative path `<family>/<file name>` of an image, different for different images.

    The family is the part of the key before the colon, the file name that of `names[0]`. If the rest of the key does
    not determine the name (as 9 does for COCO_train2014_000000000009.jpg), or characters other than ASCII letters,
    digits and "._-" were replaced, a digest of the key is appended.
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
    is_known = identity == name or (identity.isdecimal() and number is not None and int(number[1]) == int(identity))
    if not is_known or f"{folder}/{stem}{dot}{suffix}" != f"{family}/{name}":
        stem += "-" + hashlib.sha256(image.key.encode()).hexdigest()[:12]
    return Path(folder) / f"{stem}{dot}{suffix}"


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
