"""Drawings and masks as PNG and JPEG files in memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

PNG_LEVEL = 3
"""Light compression: three times as fast as Pillow's default, a tenth larger."""
JPEG_QUALITY = 92


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """The PNG file of an image; an array is uint8 RGB [height, width, 3] or a bool mask [height, width]."""
    return _encode(image, "PNG", compress_level=PNG_LEVEL)


def encode_jpeg(image: Image.Image | np.ndarray, *, quality: int = JPEG_QUALITY) -> bytes:
    """The JPEG file of an RGB image."""
    return _encode(image, "JPEG", quality=quality)


def _encode(image: Image.Image | np.ndarray, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    drawn = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    drawn.save(buffer, format=file_format, **options)
    return buffer.getvalue()
