"""File names, numbers and bytes -> images: of COCO, SAIAPR, Flickr30k, or of one data set only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

from refcli.data.sources.record import LazyBytes, RawImage
from refcli.errors import DataError

ImageOrigin = Literal["auto", "coco", "own"]
"""Where the images of a data set come from. `coco`: COCO; `own`: the data set itself; `auto`: COCO where the file name
has COCO's form of 2014."""
_COCO_NAME = re.compile(r"COCO_(?:train|val|test)201[45]_([0-9]{12})\.jpg")
_BARE_NAME = re.compile(r"([0-9]{12})\.jpg")
"""COCO's names of 2017; other data sets number their files in the same way."""
_COCO_OBJECT_NAME = re.compile(r"COCO_(?:train|val)2014_([0-9]{12})_[0-9]+\.jpg")
"""A name that ends with the number of an object; no file has it."""
_KEPT = 4096
"""Names and images that are kept, because many records in a row have the same."""
_DIGEST_DIGITS = 32
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""First bytes of an image -> the usual suffix of its file."""


@lru_cache(maxsize=_KEPT)
def coco_id(file_name: str, *, origin: ImageOrigin = "auto") -> int | None:
    """The id in COCO's name of an image, in any folder; None for other names.

    A name of twelve digits is COCO's form of 2017 but also that of many other data sets: it counts as COCO's only where
    `origin` is "coco".
    """
    name = PurePosixPath(normalise_name(file_name)).name
    match = None
    if origin != "own":
        match = _COCO_NAME.fullmatch(name) or _COCO_OBJECT_NAME.fullmatch(name)
    if match is None and origin == "coco":
        match = _BARE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def possible_coco_id(key: str) -> int | None:
    """The COCO id that the key of an own image may stand for: its twelve digits, if it has them."""
    match = _BARE_NAME.fullmatch(key.rpartition(":")[2].rpartition("/")[2])
    return int(match[1]) if match else None


def named_image(
    file_name: str, *, dataset: str, width: int | None = None, height: int | None = None, origin: ImageOrigin = "auto"
) -> RawImage:
    """The image of a file name: COCO's if its name or `origin` shows it, otherwise the data set's own.

    Args:
        file_name: with or without folders, with either kind of slashes.
        dataset: prefix of the keys of own images.
        width, height: in pixels, if known.
        origin: see `ImageOrigin`.

    Raises:
        DataError: the name of an own image leads out of the image folder or is empty. For COCO images the folders are
            ignored instead.
    """
    name = normalise_name(file_name)
    number = coco_id(name, origin=origin)
    if number is None:
        return own_image(file_name, dataset=dataset, width=width, height=height)
    parts = PurePosixPath(name).parts
    image = coco_image(number, width=width, height=height)
    if ".." in parts or _COCO_OBJECT_NAME.fullmatch(parts[-1]):
        return image
    return replace(image, names=tuple(dict.fromkeys((name, *image.names))))


@lru_cache(maxsize=_KEPT)
def own_image(file_name: str, *, dataset: str, width: int | None, height: int | None) -> RawImage:
    """An image that belongs to this data set only.

    If its name is a number of twelve digits and its size is known, the file of that size under COCO's 2014 name is
    accepted too.

    Raises:
        DataError: the name leads out of the image folder or is empty.
    """
    name = normalise_name(file_name)
    _check_inside(PurePosixPath(name).parts, file_name)
    bare = _BARE_NAME.fullmatch(PurePosixPath(name).name)
    others = coco_image(int(bare[1])).names if bare and width and height else ()
    names = dict.fromkeys((name, *(other for other in others if not _BARE_NAME.fullmatch(other))))
    return RawImage(f"{dataset}:{name}", tuple(names), width, height)


@lru_cache(maxsize=_KEPT)
def coco_image(image_id: int, *, width: int | None = None, height: int | None = None) -> RawImage:
    """The COCO image with this id, under its 2014 and 2017 names; sizes in pixels."""
    names = (f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg", f"COCO_val2014_{image_id:012d}.jpg")
    return RawImage(f"coco:{image_id}", names, width, height)


def saiapr_image(image_id: str | int, *, width: int | None = None, height: int | None = None) -> RawImage:
    """An image of IAPR TC-12 (SAIAPR), whose file name is its number."""
    return RawImage(f"saiapr:{image_id}", (f"{image_id}.jpg",), width, height)


def flickr_image(image_id: str | int, *, width: int | None = None, height: int | None = None) -> RawImage:
    """The Flickr30k image with this number."""
    return RawImage(f"flickr30k:{image_id}", (f"{image_id}.jpg",), width, height)


def named_flickr_image(file_name: str, *, width: int | None, height: int | None) -> RawImage:
    """The Flickr30k image whose file, in any folder, is `<id>.jpg`.

    Raises:
        DataError: the name is empty.
    """
    name = PurePosixPath(normalise_name(file_name)).name
    _check_inside(PurePosixPath(name).parts, file_name)
    return RawImage(f"flickr30k:{PurePosixPath(name).stem}", (name,), width, height)


def stored_image(
    content: LazyBytes,
    name: str | None,
    *,
    dataset: str,
    width: int | None = None,
    height: int | None = None,
    origin: ImageOrigin = "auto",
) -> RawImage:
    """The image whose bytes are in an annotation file.

    Its identity is COCO's number if its name shows one (see `coco_id`), else its content: equal bytes are one image, in
    however many rows, and equal names (`image.png`) with different bytes are several.

    Args:
        content: the bytes.
        name: its file name, if known.
        dataset: prefix of the keys of images that are not COCO's.
        width, height: in pixels, if known.
        origin: see `ImageOrigin`.
    """
    number = coco_id(name, origin=origin) if name else None
    if number is not None:
        return replace(coco_image(number, width=width, height=height), content=content)
    found = content()
    digest = hashlib.sha256(found).hexdigest()[:_DIGEST_DIGITS]
    base = normalise_name(name).rpartition("/")[2] if name else ""
    if base in ("", ".", ".."):
        base = digest + next((suffix for start, suffix in _SUFFIXES.items() if found.startswith(start)), "")
        return RawImage(f"{dataset}:{base}", (base,), width, height, content)
    return RawImage(f"{dataset}:{digest}/{base}", (base,), width, height, content)


def normalise_name(file_name: str) -> str:
    """The name with single forward slashes, relative and without "." parts: one spelling for one path."""
    name = file_name.strip()
    if "/" not in name and "\\" not in name:
        return name or "."
    return PurePosixPath(name.replace("\\", "/").lstrip("/")).as_posix()


def _check_inside(parts: tuple[str, ...], file_name: str) -> None:
    if parts and ".." not in parts:
        return
    fault = "leads out of the image folder" if parts else "names no file"
    raise DataError(f"the name {file_name!r} {fault}", hint="give the image's path below the image folder")
