"""Where the images of a data set are: below the given roots, or, out of archives, in the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from refcli.data.preparation.extract import extract_images
from refcli.data.preparation.images import MISSING, UNREADABLE, FoundImage, ImageRoots, comparable_name
from refcli.data.sources.record import RawImage


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
