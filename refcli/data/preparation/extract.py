"""Taking pictures out of archives, under names of our own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from refcli.data.preparation.images import FoundImage
from refcli.data.reading.archives import open_archive
from refcli.data.sources.record import RawImage
from refcli.files import write_atomically

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
