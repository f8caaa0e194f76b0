"""Which photograph a file name means, for formats that give images by name only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from refcli.data.sources.coco.instances import coco_image
from refcli.data.sources.record import RawImage
from refcli.errors import DataError

Whose = Literal["auto", "coco", "own"]
"""Whose photographs a data set is about: `coco`: COCO's; `own`: only its own; `auto`: COCO's where the names are those
of 2014, which say so."""
_COCO_NAME = re.compile(r"COCO_(?:train|val|test)201[45]_([0-9]{12})\.jpg")
_BARE_NAME = re.compile(r"([0-9]{12})\.jpg")
"""COCO's names of 2017; and of any other set that numbers its files."""
_COCO_OBJECT_NAME = re.compile(r"COCO_(?:train|val)2014_([0-9]{12})_[0-9]+\.jpg")
"""A name that carries the number of an object behind that of the photograph; no file bears it."""


def coco_id(file_name: str, *, whose: Whose = "auto") -> int | None:
    """The id in COCO's name of a photograph, in any folder; None for other names.

    COCO's names of 2017 are a number of twelve digits, as those of many other sets: they are COCO's where `whose` says
    so.
    """
    name = PurePosixPath(forward(file_name)).name
    match = None
    if whose != "own":
        match = _COCO_NAME.fullmatch(name) or _COCO_OBJECT_NAME.fullmatch(name)
    if match is None and whose == "coco":
        match = _BARE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def possible_coco_id(key: str) -> int | None:
    """The id that an image has in COCO if it is COCO's after all: that of twelve digits in the key of an own image."""
    match = _BARE_NAME.fullmatch(key.rpartition(":")[2].rpartition("/")[2])
    return int(match[1]) if match else None


def named_image(
    file_name: str, *, dataset: str, width: int | None = None, height: int | None = None, whose: Whose = "auto"
) -> RawImage:
    """The photograph of a file name: COCO's if its name or its data set says so, else one that only this data set has.

    Args:
        file_name: with or without folders, with either kind of slashes.
        dataset: the family of images that have no other.
        width, height: in pixels, if known.
        whose: see `Whose`.

    Raises:
        DataError: the name leads out of the folder of images, or names no file. The folders of COCO's photographs are
            forgotten instead.
    """
    name = forward(file_name)
    number = coco_id(name, whose=whose)
    if number is None:
        return own_image(file_name, dataset=dataset, width=width, height=height)
    parts = PurePosixPath(name).parts
    image = coco_image(number, width=width, height=height)
    if ".." in parts or _COCO_OBJECT_NAME.fullmatch(parts[-1]):
        return image
    return replace(image, names=tuple(dict.fromkeys((name, *image.names))))


def own_image(file_name: str, *, dataset: str, width: int | None, height: int | None) -> RawImage:
    """An image that only this data set has.

    One whose name is a number of twelve digits, and whose size is known, may also be the file of that size which has
    the number in COCO's name of 2014.

    Raises:
        DataError: the name leads out of the folder of images, or names no file.
    """
    name = forward(file_name)
    _check_inside(PurePosixPath(name).parts, file_name)
    bare = _BARE_NAME.fullmatch(PurePosixPath(name).name)
    others = coco_image(int(bare[1]), width=None, height=None).names if bare and width and height else ()
    names = dict.fromkeys((name, *(other for other in others if not _BARE_NAME.fullmatch(other))))
    return RawImage(f"{dataset}:{name}", tuple(names), width, height)


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
    fault = "leads out of the folder of images" if parts else "names no file"
    raise DataError(f"the name {file_name!r} {fault}", hint="give the image's path below the folder of images")


def forward(file_name: str) -> str:
    """The name with single forward slashes, relative and without "." parts: one spelling for one place."""
    return PurePosixPath(file_name.strip().replace("\\", "/").lstrip("/")).as_posix()
