"""The one place that decodes images: any mode becomes upright 8-bit RGB, within limits of size and memory."""

from __future__ import annotations

import ctypes
import io
import os
import re
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from refcli.data.reading.decoding_memory import BYTES_OF_MODE, DECODER_BYTES, check_completeness, decoding_bytes
from refcli.errors import ImageError

LARGE_PIXELS = 50_000_000
"""`open_scaled` reduces images with more pixels; all others keep every pixel."""
_LARGE_BYTES = 1 << 27
"""A decoded image of at least this size is returned to the system at once."""
_ORIENTATION = 0x0112
_TURNED = range(2, 9)
_SIDEWAYS = range(5, 9)
"""EXIF orientations that swap width and height."""
_HEADER_IS_ENOUGH = frozenset({"JPEG", "MPO", "WEBP", "BMP", "GIF"})
"""Formats whose orientation is known before decoding (a PNG may store it after the pixels; Pillow turns TIFFs
itself)."""
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_HIGH_RANGE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the image upright."""
_LEVELS_OF_16_BITS = np.rint(np.arange(1 << 16) * (255.0 / 65535.0)).astype(np.uint8)
_TILE_PIXELS, _TILE_SIDE = 1 << 21, 1 << 16
"""Largest area and side, in pixels, of the tiles on which conversions that need several copies run."""
_LARGEST_FACTOR = 64
"""The largest reduction, for very long and thin images; it divides the side of a tile."""

_HEAD_BYTES = 512
_OTHER_KINDS = (
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "a HEIC image; convert it to JPEG or PNG"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; fetch the image with `git lfs pull`"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page; download the image again"),
)
"""First bytes of files that are often mistaken for images, and the kind of file."""
_PNG, _PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""The first bytes of a PNG, and the chunks that affect neither pixels nor size."""
_REDUCED_FIRST = frozenset({"I", "F"})
"""Modes that are averaged before the conversion to 8 bits, which is slow for them."""
_DECODER_ERRORS = (
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
"""Exceptions that Pillow's decoders raise for damaged files."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of size and memory for reading images."""

    max_pixels: int = 200_000_000
    """Larger images are refused before decoding (a small file can claim any size)."""
    max_bytes: int = 1_000_000_000
    """Memory that decoding may need: for one image, and for all threads that decode at the same time."""
    large_pixels: int = LARGE_PIXELS
    reduced_side: int = 3072
    """Minimum length of the longer side of a reduced image in pixels; models use a fraction of it."""


DEFAULT_LIMITS = ImageLimits()


class _NoPillowLimit:
    """A context without Pillow's own limit, a warning from 89 megapixels on: `ImageLimits` apply instead."""

    def __init__(self) -> None:
        self.reset()
        _after_fork(self.reset)

    def reset(self) -> None:
        """Forget all threads: a forked process has none of them."""
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                Image.MAX_IMAGE_PIXELS = self._limit


class _Budget:
    """Memory shared by all threads: a thread that needs more than is left waits; one is always admitted."""

    def __init__(self) -> None:
        self.reset()
        _after_fork(self.reset)

    def reset(self) -> None:
        """Forget all threads: a forked process has none of them."""
        self._free = threading.Condition()
        self._held = 0

    @contextmanager
    def hold(self, num_bytes: int, max_bytes: int) -> Iterator[None]:
        """Wait for a part of the budget of `max_bytes`, and hold it."""
        with self._free:
            self._free.wait_for(lambda: not self._held or self._held + num_bytes <= max_bytes)
            self._held += num_bytes
        try:
            yield
        finally:
            with self._free:
                self._held -= num_bytes
                self._free.notify_all()


def _after_fork(reset: Callable[[], None]) -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)


_no_pillow_limit = _NoPillowLimit()
_budget = _Budget()


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The size of an image in pixels, as `read_image` returns it, and its orientation in the file."""

    width: int
    height: int
    orientation: int = 1
    """EXIF: 1 if the file stores the image upright; 2 to 8 if reading turns or mirrors it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return self.width, self.height

    @property
    def raw_size(self) -> tuple[int, int]:
        """(width, height) of the raster in the file, before it is turned."""
        return (self.height, self.width) if self.orientation in _SIDEWAYS else self.size


@dataclass(frozen=True, slots=True)
class ScaledImage:
    """An upright RGB image, reduced if its file has more than `LARGE_PIXELS` pixels."""

    image: Image.Image
    width: int
    height: int
    """Size of the upright original in pixels: the frame of boxes and masks."""


def read_image(
    source: str | Path | bytes, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as RGB: EXIF orientation applied, transparency composited over white, high bit depths scaled to 8
    bits.

    Args:
        source: a path, or the bytes of an image file.
        name: the image's name in errors; default: the path.
        limits: of size and memory.

    Raises:
        ImageError: the file is missing, not an image, damaged, or beyond the limits.
    """
    image = _decode(source, name, limits, spare_bytes=3).image
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for tile in _tiles(image, 1):
        left, top, right, bottom = tile
        pixels[top:bottom, left:right] = np.asarray(image if tile == (0, 0, *image.size) else image.crop(tile))
    return pixels


def open_image(
    source: str | Path | bytes, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """As `read_image`, as a decoded Pillow image of mode RGB."""
    return _decode(source, name, limits).image


def open_scaled(
    source: str | Path | bytes, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> ScaledImage:
    """As `open_image` for up to `LARGE_PIXELS` pixels; larger images are reduced by 2, 4, 8 ... while decoding.

    For viewing and for models, which use far fewer pixels; a JPEG of 200 million pixels needs 1/16 of the memory.
    """
    return _decode(source, name, limits, may_reduce=True)


def probe(source: Path | bytes, *, name: str | None = None) -> ImageFacts:
    """The size of an image, from its header where the format allows; damaged pixels are then not noticed.

    Args:
        source: a path, or the bytes of an image file.
        name: the image's name in errors; default: the path.

    Raises:
        ImageError: as `verify`.
    """
    with _open(source, name or _name_of(source)) as image:
        has_orientation = image.format in _HEADER_IS_ENOUGH or (image.format == "PNG" and "exif" in image.info)
        if has_orientation and image.width * image.height <= DEFAULT_LIMITS.max_pixels:
            orientation = _orientation(image)
            width, height = image.size[::-1] if orientation in _SIDEWAYS else image.size
            return ImageFacts(width, height, orientation)
    return verify(source, name=name)


def verify(source: Path | bytes, *, name: str | None = None) -> ImageFacts:
    """As `probe`, by decoding the image completely.

    Raises:
        ImageError: the file is missing, not an image, damaged or too large.
    """
    scaled = open_scaled(source, name=name)
    with _open(source, name or _name_of(source)) as image:
        return ImageFacts(scaled.width, scaled.height, _orientation(image))


def _name_of(source: str | Path | bytes) -> str:
    return "image bytes" if isinstance(source, bytes) else str(source)


def _decode(
    source: str | Path | bytes,
    name: str | None,
    limits: ImageLimits,
    *,
    may_reduce: bool = False,
    spare_bytes: int = 0,
) -> ScaledImage:
    """Open, check, decode and convert an image; `spare_bytes` is the caller's own memory per pixel."""
    where = name or _name_of(source)
    with _closing(_open(source, where)) as image:
        if image.width * image.height > limits.max_pixels:
            raise ImageError(
                f"the image has {image.width} x {image.height} pixels, "
                f"more than {limits.max_pixels // 1_000_000} million",
                where=where,
                hint="scale it down",
            )
        try:
            check_completeness(image)
            factor = _reduction(image.size, limits) if may_reduce else 1
            # A PNG may store its orientation after the pixels; Pillow would decode it to find out.
            is_rotated = (image.format != "PNG" or "exif" in image.info) and _orientation(image) != 1
            num_bytes = decoding_bytes(image, factor, is_rotated=is_rotated)
            num_bytes += spare_bytes * image.width * image.height
            if num_bytes > limits.max_bytes:
                raise ImageError(
                    f"decoding the image needs {num_bytes / 1e9:.1f} GB "
                    f"({image.width} x {image.height} pixels, {image.format} {image.mode}), "
                    f"more than {limits.max_bytes / 1e9:.1f}",
                    where=where,
                    hint="scale it down, or save it as an 8-bit RGB JPEG",
                )
            with _budget.hold(num_bytes, limits.max_bytes), _no_pillow_limit:
                scaled = _to_upright_rgb(image, factor)
                if num_bytes >= _LARGE_BYTES:
                    _release_memory()
                return scaled
        except _DECODER_ERRORS as error:
            raise ImageError(
                f"the image cannot be decoded: {error}", where=where, hint="fetch or export the file again"
            ) from error


@contextmanager
def _closing(image: Image.Image) -> Iterator[Image.Image]:
    try:
        yield image
    finally:
        with suppress(ValueError):  # some versions of Pillow cannot close an animation twice
            image.__exit__(None, None, None)


def _to_upright_rgb(image: Image.Image, factor: int) -> ScaledImage:
    width, height = image.size
    if factor > 1:
        image.draft(image.mode, (-(-width // factor), -(-height // factor)))  # a JPEG is decoded at a lower resolution
        factor //= max(1, round(width / image.width), round(height / image.height))
    drafted = image.size
    image.load()
    if image.size == drafted[::-1] != drafted:  # Pillow turns TIFFs itself
        width, height = height, width
    orientation = _orientation(image)
    rgb = _reduced(image, factor) if factor > 1 else _to_rgb(image)
    if rgb is not image:
        image.close()  # frees the pixels
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        width, height = (height, width) if orientation in _SIDEWAYS else (width, height)
    return ScaledImage(rgb, width, height)


def _reduction(size: tuple[int, int], limits: ImageLimits) -> int:
    """The largest power of two (up to 64) that leaves a large image a longer side of `reduced_side`; 1 for others."""
    if size[0] * size[1] <= limits.large_pixels:
        return 1
    return min(1 << max(0, (max(size) // limits.reduced_side).bit_length() - 1), _LARGEST_FACTOR)


def _orientation(image: Image.Image) -> int:
    try:
        given = image.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:  # the pixels may be intact even if the metadata is not
        return 1
    return next((known for known in _TURNED if known == given), 1)


def _open(source: str | Path | bytes, where: str) -> Image.Image:
    if not source:
        raise ImageError("the image is empty", where=where, hint="fetch or export the file again")
    try:
        with _no_pillow_limit:
            Image.init()
            formats = [name for name in DECODER_BYTES if name in Image.OPEN]
            file = source if isinstance(source, bytes) else _check_regular(source)
            try:
                return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)
            except ValueError:
                content = file if isinstance(file, bytes) else Path(file).read_bytes()
                if not content.startswith(_PNG):
                    raise
                return Image.open(io.BytesIO(_without_text_chunks(content)), formats=formats)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("there is no such image", where=where, hint="check the path") from error
    except IsADirectoryError as error:
        raise ImageError("this is a directory, not an image", where=where, hint="name a file") from error
    except PermissionError as error:
        raise ImageError("permission to read the image is denied", where=where, hint="check its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"the file is not an image that can be read{_describe_other_kind(source)}",
            where=where,
            hint="use JPEG, PNG, WebP, TIFF, BMP or GIF",
        ) from error
    except _DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(
            f"the image cannot be read: {reason}", where=where, hint="fetch or export the file again"
        ) from error


def _describe_other_kind(source: str | Path | bytes) -> str:
    """`: it is ...` for a file that is often mistaken for an image; else empty."""
    head = b""
    with suppress(OSError):
        if isinstance(source, bytes):
            head = source[:_HEAD_BYTES]
        else:
            with open(source, "rb") as file:  # noqa: PTH123 - `source` may be text
                head = file.read(_HEAD_BYTES)
    if not head.strip(b"\0"):
        return ": it is empty" if not head else ""
    return next((f": it is {kind}" for start, kind in _OTHER_KINDS if start.match(head)), "")


def _without_text_chunks(png: bytes) -> bytes:
    """A PNG without texts and colour profile, which are unused here: Pillow refuses a file if they are long."""
    kept, position = [_PNG], len(_PNG)
    while position + 8 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in _PNG_TEXTS:
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _release_memory() -> None:
    """Return the memory of a large image to the system; glibc may keep it for the thread that freed it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _check_regular(path: str | Path) -> str | Path:
    """The path, if it is a regular file: opening a pipe waits for its writer, and reading a device may never end.

    Raises:
        OSError: it is not a regular file, or does not exist.
        ValueError: no file can have such a name.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - `path` may be text
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(mode):
        raise OSError("not a regular file")
    return path


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if not _needs_copies(image):
        return image.convert("RGB")
    return _reduced(image, 1)


def _needs_copies(image: Image.Image) -> bool:
    """Whether the conversion to RGB needs several copies."""
    return image.mode in _HIGH_RANGE | _WITH_ALPHA or image.info.get("transparency") is not None


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """A decoded image as RGB, averaged over squares of `factor` pixels, tile by tile."""
    if image.mode in _REDUCED_FIRST and factor > 1:
        image, factor = image.reduce(factor), 1
    white = _white_level(image) if image.mode in _HIGH_RANGE else 0.0
    sheet = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for tile in _tiles(image, factor):
        band = image.crop(tile)
        if band.mode in _HIGH_RANGE:
            band = Image.fromarray(_to_8_bits(np.asarray(band), white)).convert("RGB")
        elif _needs_copies(band):
            band = _over_white(band)
        else:
            band = band.convert("RGB")
        sheet.paste(band.reduce(factor) if factor > 1 else band, (tile[0] // factor, tile[1] // factor))
    return sheet


def _tiles(image: Image.Image, factor: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover an image; sides are multiples of the factor, except at the right and bottom edge."""
    across = min(image.width, _TILE_SIDE)
    down = max(1, _TILE_PIXELS // across // factor) * factor
    for top in range(0, image.height, down):
        for left in range(0, image.width, across):
            yield left, top, min(left + across, image.width), min(top + down, image.height)


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _white_level(image: Image.Image) -> float:
    """The grey value that becomes 255: the smallest of 1 (floats only), 255 and 65535 that reaches the maximum.

    It is always 65535 for 16-bit files, and the maximum itself if that is larger.
    """
    if BYTES_OF_MODE.get(image.mode) == np.uint16().itemsize:
        return 65535.0
    top = max(float(_finite(np.asarray(image.crop(tile))).max()) for tile in _tiles(image, 1))
    whites = ([1.0] if image.mode == "F" else []) + [255.0, 65535.0, top]
    return next(candidate for candidate in whites if top <= candidate)


def _to_8_bits(values: np.ndarray, white: float) -> UInt8[np.ndarray, "height width"]:
    """Grey values of any range as 0..255; negative values are black."""
    if values.dtype.itemsize == np.uint16().itemsize:
        levels: np.ndarray = _LEVELS_OF_16_BITS[values.astype(np.uint16)]
        return levels
    return np.rint(_finite(values) * (255.0 / white)).astype(np.uint8)


def _finite(values: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    return finite
