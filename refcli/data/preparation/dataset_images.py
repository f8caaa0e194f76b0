"""The images of a data set: found below the given roots, or extracted into the store from archives and
annotation files."""

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
from refcli.data.reading.images import probe
from refcli.data.sources.record import LazyBytes, RawImage
from refcli.errors import DataError, ImageError
from refcli.files import write_atomically

MAX_MEMBER_BYTES = 200_000_000
"""Limit on the size of an extracted image; images of known data sets are far smaller."""
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
    extract_to: Path
    """Folder for the images that the annotation files contain; see `RawImage.content`."""

    @classmethod
    def not_searched(cls, *, extract_to: Path) -> DatasetImages:
        """Images that are not searched for; `extract_to` is a folder in `<store>/<data set>`."""
        return cls(None, None, {}, FileNames(tuple), extract_to.resolve())

    @classmethod
    def below(
        cls,
        roots: Sequence[Path],
        images: Iterable[RawImage],
        *,
        extract_to: Path,
        file_names: FileNames,
        are_in_annotations: bool = False,
    ) -> DatasetImages:
        """Index directories and archives; images in archives are extracted first.

        Args:
            roots: directories, zips or tars.
            images: the wanted images; iterated only if there are archives.
            extract_to: folder for images from archives and from annotation files.
            file_names: file names of all images of the data set, wanted or not.
            are_in_annotations: whether the annotation files may contain images.
        """
        roots = [root.resolve() for root in roots]
        index = ImageRoots.open(roots)
        extracted: dict[str, Path] = {}
        if index.has_archives:
            wanted = {image.key: (image, found) for image in images if (found := index.find(image)) and found.archive}
            extracted = extract_images(wanted.values(), extract_to.resolve())
        places = [root for root in roots if root.is_dir()]
        if index.has_archives or are_in_annotations or not places:
            places.append(extract_to.resolve())
        return cls(index, Path(os.path.commonpath(places)), extracted, file_names, extract_to.resolve())

    @property
    def unreadable(self) -> Mapping[Path, str]:
        """Folders and archives that could not be read -> reason."""
        return self.roots.unreadable if self.roots else {}

    def place(self, image: RawImage) -> Place | None:
        """The place of an image; None if it is missing, unreadable, or its path is not UTF-8."""
        if image.content is not None:
            try:
                file = extract_content(image, image.content, self.extract_to)
            except (DataError, ImageError):
                return None
            return Place(file.relative_to(self.base or self.extract_to.parent).as_posix(), file)
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
        if image.content is not None:
            try:
                extract_content(image, image.content, self.extract_to)
            except (DataError, ImageError) as error:
                return UNREADABLE, error.message
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


def extract_content(image: RawImage, content: LazyBytes, out: Path, *, max_bytes: int = MAX_MEMBER_BYTES) -> Path:
    """Write an image that the annotation file contains; the file appears atomically.

    An existing file is never replaced: it is kept if it has the same bytes; otherwise the new name has a digest of the
    bytes, since records may refer to the other one.

    Args:
        image: the image.
        content: its bytes.
        out: the folder, created if missing; see `safe_path` for the names in it.
        max_bytes: limit on the size of an image.

    Raises:
        DataError: the bytes cannot be read, or are too many.
        ImageError: they are not an image.
    """
    found = content()
    if len(found) > max_bytes:
        raise DataError(f"the image has {len(found):,} bytes", hint=f"the limit is {max_bytes:,}")
    path = out / safe_path(image)
    if _has_content(path, found):
        return path
    probe(found, name=image.names[0])
    if path.exists() or path.is_symlink():
        path = path.with_name(f"{path.stem}-{hashlib.sha256(found).hexdigest()[:12]}{path.suffix}")
        if _has_content(path, found):
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, found)
    return path


def _has_content(path: Path, content: bytes) -> bool:
    is_alike = path.is_file() and not path.is_symlink() and path.stat().st_size == len(content)
    return is_alike and path.read_bytes() == content


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
