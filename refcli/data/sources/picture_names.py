"""Which photograph a file name means, for formats that give pictures by name only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from refcli.data.sources.coco_instances import coco_image
from refcli.data.sources.record import RawImage
from refcli.errors import DataError

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?([0-9]{12})\.jpg")
_COCO_OBJECT_NAME = re.compile(r"COCO_(?:train|val)2014_([0-9]{12})_[0-9]+\.jpg")
"""A name that carries the number of an object behind that of the photograph; no file bears it."""


def coco_id(file_name: str) -> int | None:
    """The id in COCO's 2014 or 2017 name of a photograph, in any folder; None for other names."""
    name = PurePosixPath(forward(file_name)).name
    match = _COCO_NAME.fullmatch(name) or _COCO_OBJECT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def named_image(file_name: str, *, dataset: str, width: int | None = None, height: int | None = None) -> RawImage:
    """The photograph of a file name: COCO's if it is one of COCO's names, else one that only this data set has.

    Args:
        file_name: with or without folders, with either kind of slashes.
        dataset: the family of pictures that have no other.
        width, height: in pixels, if known.

    Raises:
        DataError: the name leads out of the folder of pictures, or names no file. The folders of COCO's photographs are
            forgotten instead.
    """
    name = forward(file_name)
    parts = PurePosixPath(name).parts
    number = coco_id(name)
    if number is None:
        _check_inside(parts, file_name)
        return RawImage(f"{dataset}:{name}", (name,), width, height)
    image = coco_image(number, width=width, height=height)
    if ".." in parts or _COCO_OBJECT_NAME.fullmatch(parts[-1]):
        return image
    return replace(image, names=tuple(dict.fromkeys((name, *image.names))))


def flickr_image(file_name: str, *, width: int | None, height: int | None) -> RawImage:
    """The photograph of Flickr30k whose file, in any folder, is `<id>.jpg`.

    Raises:
        DataError: the name names no file.
    """
    name = PurePosixPath(forward(file_name)).name
    _check_inside(PurePosixPath(name).parts, file_name)
    return RawImage(f"flickr30k:{PurePosixPath(name).stem}", (name,), width, height)


def _check_inside(parts: tuple[str, ...], file_name: str) -> None:
    if parts and ".." not in parts:
        return
    fault = "leads out of the folder of pictures" if parts else "names no file"
    raise DataError(f"the name {file_name!r} {fault}", hint="give the picture's path below the folder of pictures")


def forward(file_name: str) -> str:
    """The name with single forward slashes, relative and without "." parts: one spelling for one place."""
    return PurePosixPath(file_name.strip().replace("\\", "/").lstrip("/")).as_posix()
