"""Reading one picture, whatever its mode, into upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from refcli.errors import ImageError

MAX_PIXELS = 200_000_000
"""Larger pictures are refused before they are decoded (a small file can claim any size)."""

_ORIENTATION = 0x0112
_TURNED = range(2, 9)
_SIDEWAYS = range(5, 9)
"""EXIF orientations that exchange width and height."""
_HEADER_IS_ENOUGH = frozenset({"JPEG", "MPO", "WEBP", "BMP", "GIF"})
"""Formats whose orientation is known before the pixels (a PNG may have it behind them, Pillow turns TIFFs itself)."""
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_HIGH_RANGE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""

_pillow_limit = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The size of a picture as `read_image` returns it, in pixels, and how its file holds it."""

    width: int
    height: int
    orientation: int = 1
    """EXIF: 1 if the file holds the picture upright, 2 to 8 if it is turned or mirrored when it is read."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        return self.width, self.height

    @property
    def raw_size(self) -> tuple[int, int]:
        """(width, height) of the raster in the file, before it is turned."""
        return (self.height, self.width) if self.orientation in _SIDEWAYS else self.size


def read_image(source: str | Path | bytes, *, name: str | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture as RGB: EXIF orientation applied, transparency laid over white, high bit depths scaled down.

    Args:
        source: a path, or the bytes of a picture file.
        name: what to call the picture in an error; default the path.

    Raises:
        ImageError: there is no such file, it is no picture, it is damaged or larger than `MAX_PIXELS`.
    """
    return np.array(open_image(source, name=name))


def open_image(source: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """As `read_image`, but a decoded Pillow image of mode RGB."""
    where = name or ("picture bytes" if isinstance(source, bytes) else str(source))
    with _opened(source, where) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"the picture has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 1_000_000} million",
                where=where,
                hint="scale it down",
            )
        try:
            return _to_rgb(ImageOps.exif_transpose(image))
        except _BROKEN as error:
            raise ImageError(
                f"the picture cannot be decoded: {error}", where=where, hint="fetch or export the file again"
            ) from error


def probe(path: Path) -> ImageFacts:
    """The size of a picture, from its header where the format allows; damage behind that is not seen.

    Raises:
        ImageError: as `decode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                is_told = image.format in _HEADER_IS_ENOUGH or (image.format == "PNG" and "exif" in image.info)
                if is_told and image.width * image.height <= MAX_PIXELS:
                    orientation = _orientation(image)
                    width, height = image.size[::-1] if orientation in _SIDEWAYS else image.size
                    return ImageFacts(width, height, orientation)
    except (*_BROKEN, Image.DecompressionBombWarning):
        return decode(path)  # which names the reason
    return decode(path)


def decode(path: Path) -> ImageFacts:
    """The size of a picture that is decoded whole.

    Raises:
        ImageError: there is no such file, it is no picture, damaged or too large.
    """
    width, height = open_image(path).size
    with _opened(path, str(path)) as image:
        return ImageFacts(width, height, _orientation(image))


def _orientation(image: Image.Image) -> int:
    given = image.getexif().get(_ORIENTATION)
    return next((known for known in _TURNED if known == given), 1)


def _opened(source: str | Path | bytes, where: str) -> Image.Image:
    if not source:
        raise ImageError("the picture is empty", where=where, hint="fetch or export the file again")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    # Pillow's own bomb check warns from 89 megapixels on; ours follows as soon as the header is read.
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        except FileNotFoundError as error:
            raise ImageError("there is no such picture", where=where, hint="check the path") from error
        except IsADirectoryError as error:
            raise ImageError("this is a directory, not a picture", where=where, hint="name a file") from error
        except PermissionError as error:
            raise ImageError("the picture may not be read", where=where, hint="check its permissions") from error
        except UnidentifiedImageError as error:
            raise ImageError(
                "the file is not a picture that can be read", where=where, hint="use JPEG, PNG, WebP, TIFF, BMP or GIF"
            ) from error
        except _BROKEN as error:
            raise ImageError(
                f"the picture cannot be read: {error}", where=where, hint="fetch or export the file again"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image if image.info.get("transparency") is None else _over_white(image)
    if image.mode in _HIGH_RANGE:
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in _WITH_ALPHA or image.info.get("transparency") is not None:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, layer).convert("RGB")


def _to_8_bits(values: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """Grey values of any range -> 0..255: white is the smallest of 1 (floats), 255 and 65535 that holds the maximum.

    16-bit files are always divided by 257; values beyond 65535 are scaled by their maximum; negative ones are black.
    """
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    top = float(grey.max())
    if values.dtype.itemsize == np.uint16().itemsize:
        white = 65535.0
    else:
        whites = ([1.0] if values.dtype.kind == "f" else []) + [255.0, 65535.0, top]
        white = next(candidate for candidate in whites if top <= candidate)
    return np.rint(grey * (255.0 / white)).astype(np.uint8)
