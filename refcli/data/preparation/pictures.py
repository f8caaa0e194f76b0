"""Where the pictures of a data set are: below the given roots, or, out of archives, in the store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from refcli.data.preparation.extract import extract_images
from refcli.data.preparation.images import FoundImage, ImageRoots
from refcli.data.sources.record import RawImage


class Place(NamedTuple):
    """Where one picture is."""

    image: str
    """Path relative to the image root of the data set."""
    path: Path | None
    """The file; None if pictures are not looked for."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one data set."""

    roots: ImageRoots | None
    """None: pictures are not looked for, and every record keeps the name that its source prefers."""
    base: Path | None
    """The image root that the manifest names; None for the default, `<store>/<data set>`."""
    extracted: dict[str, Path]
    """Key of an image -> the file that was taken out of an archive."""

    @classmethod
    def unlooked(cls) -> Pictures:
        """Pictures that are not looked for."""
        return cls(None, None, {})

    @classmethod
    def below(cls, roots: Sequence[Path], images: Iterable[RawImage], *, extract_to: Path) -> Pictures:
        """Look through directories and archives; what lies in archives is copied out first.

        Args:
            roots: directories, zips or tars.
            images: the pictures wanted; read only if there are archives.
            extract_to: where pictures out of archives go.
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
        return cls(index, Path(os.path.commonpath(places)), extracted)

    @property
    def unreadable(self) -> Mapping[Path, str]:
        """Folders and archives that could not be looked through, and why."""
        return self.roots.unreadable if self.roots else {}

    def place(self, image: RawImage) -> Place | None:
        """Where a picture is, or None if it is nowhere."""
        if self.roots is None or self.base is None:
            return Place(image.names[0], None)
        path = self.extracted.get(image.key)
        if path is None:
            found: FoundImage | None = self.roots.find(image)
            path = found.path if found else None
        if path is None:
            return None
        return Place(path.relative_to(self.base).as_posix(), path)
