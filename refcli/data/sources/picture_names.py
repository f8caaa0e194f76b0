"""Which photograph a file name means, for formats that give pictures by name only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from refcli.data.sources.coco_instances import coco_image
from refcli.data.sources.record import RawImage

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
    """
    name = forward(file_name)
    number = coco_id(name)
    if number is None:
        return RawImage(f"{dataset}:{name}", (name,), width, height)
    image = coco_image(number, width=width, height=height)
    if _COCO_OBJECT_NAME.fullmatch(PurePosixPath(name).name):
        return image
    return replace(image, names=tuple(dict.fromkeys((name, *image.names))))


def flickr_image(file_name: str, *, width: int | None, height: int | None) -> RawImage:
    """The photograph of Flickr30k whose file, in any folder, is `<id>.jpg`."""
    name = PurePosixPath(forward(file_name)).name
    return RawImage(f"flickr30k:{PurePosixPath(name).stem}", (name,), width, height)


def forward(file_name: str) -> str:
    """The name with forward slashes."""
    return file_name.strip().replace("\\", "/")
