"""One image from any source: a path, an encoded file, an array or a Pillow image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from refcli.data.reading.images import ScaledImage, open_scaled
from refcli.errors import ImageError

ImageSource: TypeAlias = str | Path | bytes | np.ndarray | Image.Image
"""A path, an encoded file, RGB uint8 pixels [height, width, 3], or a Pillow image."""
MODES_OF_TIFF = frozenset({"CMYK", "F", "LAB", "YCbCr"})
"""Pillow modes that a PNG cannot hold."""


def source_key(source: ImageSource) -> str | int:
    """Equal for two sources only if they are the same image: the path, or the id of the object while it is alive."""
    return str(source) if isinstance(source, str | Path) else id(source)


def open_source(source: ImageSource) -> ScaledImage:
    """Any image source as an upright RGB image; files of very many pixels are reduced while they are decoded.

    Raises:
        ImageError: it cannot be read, or an array has another shape or type.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ImageError(
                f"an array must be uint8 RGB [height, width, 3], this one is {source.dtype} {list(source.shape)}"
            )
        return ScaledImage(Image.fromarray(source), source.shape[1], source.shape[0])
    if isinstance(source, Image.Image):
        upright = ImageOps.exif_transpose(source)
        if upright.mode == "RGB" and upright.info.get("transparency") is None:
            return ScaledImage(upright, upright.width, upright.height)
        buffer = io.BytesIO()  # the reader of files is the one place that knows every mode
        upright.save(buffer, format="TIFF" if upright.mode in MODES_OF_TIFF else "PNG")
        return open_scaled(buffer.getvalue())
    return open_scaled(source)
