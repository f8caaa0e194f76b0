"""Masks stored as image files: the region is everything that is not black."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from refcli.contracts.example import RLE
from refcli.data.reading.archives import list_files, read_file
from refcli.data.reading.images import read_image
from refcli.errors import DataError, ImageError
from refcli.geometry.masks import encode_mask

MAX_MASK_FILE_BYTES = 16 << 20
"""Maximum bytes of one mask file; a mask of a COCO image has a few kilobytes."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_SIZE = slice(16, 24)
"""Width and height in a PNG's first chunk, IHDR."""
_COLOUR_TYPE = 25
_WITH_ALPHA = (4, 6)


def list_masks(source: Path) -> dict[str, str]:
    """The PNG files of a folder or archive: stem -> name in `source`.

    Raises:
        DataError: see `list_files`.
    """
    return list_files(source, ".png")


def mask_size(source: Path, name: str) -> tuple[int, int]:
    """(width, height) of a mask in pixels, from its header.

    Raises:
        DataError: the file is missing, too large or not a PNG.
    """
    return _size(read_file(source, name, max_bytes=MAX_MASK_FILE_BYTES), f"{source}: {name}")


def read_mask_image(source: Path, name: str) -> RLE:
    """The mask in one PNG file: black is 0, and one other colour is the region.

    Raises:
        DataError: the file is missing, damaged or too large, has transparent pixels or more than two colours.
    """
    return encode_mask(mask_pixels(read_file(source, name, max_bytes=MAX_MASK_FILE_BYTES), f"{source}: {name}"))


def mask_pixels(data: bytes, where: str) -> Bool[np.ndarray, "height width"]:
    """The pixels of the region in a PNG, see `read_mask_image`; `where` names it in errors.

    Raises:
        DataError: it is damaged, has transparent pixels or more than two colours.
    """
    _size(data, where)
    if data[_COLOUR_TYPE] in _WITH_ALPHA or b"tRNS" in data[: data.find(b"IDAT")]:
        raise DataError("the mask has transparent pixels", where=where, hint="save it as a grey image of 0 and 255")
    try:
        pixels = read_image(data, name=where)
    except ImageError as error:
        raise DataError(error.message, where=where, hint=error.hint) from error
    red, green, blue = np.moveaxis(pixels, 2, 0)
    is_region: np.ndarray = (red | green | blue) != 0  # a reduction over the short axis is far slower
    colours: np.ndarray = pixels[is_region]
    if len(colours) and (colours != colours[0]).any():
        raise DataError("the mask has more than two colours", where=where, hint="save it as a grey image of 0 and 255")
    return is_region


def _size(png: bytes, where: str) -> tuple[int, int]:
    if not png.startswith(_PNG_START) or len(png) <= _COLOUR_TYPE:
        raise DataError("the mask is not a PNG file", where=where)
    width, height = struct.unpack(">II", png[_SIZE])
    return width, height
