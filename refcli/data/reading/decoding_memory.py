"""Estimate the memory for decoding an image, and check the claims of its header."""

from __future__ import annotations

import math

from PIL import Image

BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1} | dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), 2)
_BYTES_OF_COLOUR = 4
"""Bytes per pixel in Pillow's memory for every mode that is not in the table."""
DECODER_BYTES = dict.fromkeys(
    ("BMP", "DIB", "GIF", "JPEG", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "TGA", "TIFF"), 0
) | {"SGI": 6, "AVIF": 12, "HEIF": 12, "WEBP": 12, "JPEG2000": 18}
"""The formats that are read, and the bytes per pixel that each decoder needs beside the image itself (measured with
Pillow 13). Others are refused: Pillow passes some to other programs (EPS), and some hold images of another size than
their header claims (ICO, ICNS)."""
_MAX_SCANS = 500
"""Maximum number of scans of a progressive JPEG: more only cost time, and encoders write about ten."""
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_FEW_PIXELS = 10_000_000
"""A smaller JPEG is searched for several scans only if its header declares it progressive."""
_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP, _BITS, _SAMPLES, _COMPRESSION = 322, 323, 278, 258, 277, 259
"""TIFF tags."""
_MAX_DRAFT = 8
"""The largest factor by which libjpeg reduces an image."""


def decoding_bytes(image: Image.Image, factor: int, *, is_rotated: bool) -> int:
    """An upper estimate of the bytes needed to decode an opened image and convert it to RGB.

    Raises:
        OSError: a progressive JPEG has too many scans.
    """
    pixels = image.width * image.height
    of_mode = BYTES_OF_MODE.get(image.mode, _BYTES_OF_COLOUR)
    is_jpeg = image.format in ("JPEG", "MPO")
    total = pixels * (of_mode + DECODER_BYTES.get(str(image.format), 0))
    if factor > 1:
        total = total // min(factor, _MAX_DRAFT) ** 2 if is_jpeg else total
        total += 2 * _BYTES_OF_COLOUR * pixels // factor**2
    else:
        total += _BYTES_OF_COLOUR * pixels * ((image.mode != "RGB") + is_rotated)
    if is_jpeg and ("progressive" in image.info or pixels > _FEW_PIXELS):
        total += _coefficient_bytes(image)
    if image.format == "TIFF":
        total += _tiff_piece_bytes(image)
    return total


def _coefficient_bytes(image: Image.Image) -> int:
    """Memory for the coefficients of a JPEG of several scans, which its decoder keeps: two bytes each.

    Raises:
        OSError: it has more scans than any encoder writes.
    """
    num_scans = _num_scans(image)
    if num_scans > _MAX_SCANS:
        raise OSError(f"it has more than {_MAX_SCANS} scans")
    if num_scans == 1:
        return 0
    sampling: list[tuple[int, int]] = [(across, down) for _, across, down, _ in getattr(image, "layer", [])]
    largest = max((across * down for across, down in sampling), default=1) or 1
    share = sum(across * down for across, down in sampling) / largest
    return math.ceil(2 * share * image.width * image.height)


def _num_scans(image: Image.Image) -> int:
    """Number of scans of the file's first JPEG, without its thumbnails; counting stops above the allowed number."""
    file = image.fp  # type: ignore[attr-defined]  # of ImageFile
    position = file.tell()
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[:2] != _START_OF_SCAN and head[0] == 0xFF:
        file.seek(max(int.from_bytes(head[2:], "big") - 2, 0), 1)
    num_scans, last = 1, b""
    while num_scans <= _MAX_SCANS and (block := file.read(1 << 20)):
        scanned, end, _ = (last + block).partition(_END_OF_IMAGE)
        num_scans += scanned.count(_START_OF_SCAN)
        if end:
            break
        last = block[-1:]
    file.seek(position)
    return num_scans


def _tiff_piece_bytes(image: Image.Image) -> int:
    """Memory for the largest strip or tile that the decoder unpacks at once, as the file declares it."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # of TiffImageFile

    def number(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        largest = max(value, default=default) if isinstance(value, tuple) else value
        return largest if isinstance(largest, int) and largest > 0 else default

    if tags.get(_COMPRESSION, 1) == 1:  # read in place
        return 0
    width, height = image.size
    rows = min(number(_ROWS_PER_STRIP, height), height)
    piece = number(_TILE_WIDTH, 0) * number(_TILE_LENGTH, 0) or width * rows
    num_bytes: int = piece * number(_SAMPLES, 1) * -(-number(_BITS, 1) // 8)
    return num_bytes


def check_completeness(image: Image.Image) -> None:
    """Refuse an uncompressed TIFF whose strips do not cover it: Pillow would fill the rest with gigabytes of black.

    Raises:
        OSError: the strips do not cover the image.
    """
    if image.format != "TIFF":
        return
    tiles = image.tile  # type: ignore[attr-defined]  # of ImageFile
    covered = sum((tile[1][2] - tile[1][0]) * (tile[1][3] - tile[1][1]) for tile in tiles)
    if covered < image.width * image.height:
        raise OSError(f"its strips hold only {covered} of {image.width * image.height} pixels")
