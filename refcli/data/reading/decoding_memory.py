"""What decoding an opened image takes in memory, and what its header must not claim."""

from __future__ import annotations

import math

from PIL import Image

BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1} | dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), 2)
_BYTES_OF_COLOUR = 4
"""Bytes of a pixel in Pillow's memory: four in every mode that is not in the table."""
DECODER_BYTES = dict.fromkeys(
    ("BMP", "DIB", "GIF", "JPEG", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "TGA", "TIFF"), 0
) | {"SGI": 6, "AVIF": 12, "HEIF": 12, "WEBP": 12, "JPEG2000": 18}
"""The formats that are read, and the bytes that the decoder of each takes per pixel beside the image itself (measured
with Pillow 13). Others are refused: Pillow hands some to other programs (EPS), and some hold images of another size
than their header says (ICO, ICNS)."""
_MOST_SCANS = 500
"""A progressive JPEG of more scans only costs time; encoders write about ten."""
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_FEW_PIXELS = 10_000_000
"""A smaller JPEG is not searched for several scans unless its header says that it is progressive."""
_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP, _BITS, _SAMPLES, _COMPRESSION = 322, 323, 278, 258, 277, 259
"""TIFF tags."""
_MOST_DRAFTED = 8
"""libjpeg reduces by at most this factor."""


def decoding_bytes(image: Image.Image, factor: int, *, is_turned: bool) -> int:
    """About how many bytes decoding an opened image and converting it to RGB take at most.

    Raises:
        OSError: a progressive JPEG of very many scans.
    """
    pixels = image.width * image.height
    of_mode = BYTES_OF_MODE.get(image.mode, _BYTES_OF_COLOUR)
    is_jpeg = image.format in ("JPEG", "MPO")
    total = pixels * (of_mode + DECODER_BYTES.get(str(image.format), 0))
    if factor > 1:
        total = total // min(factor, _MOST_DRAFTED) ** 2 if is_jpeg else total
        total += 2 * _BYTES_OF_COLOUR * pixels // factor**2
    else:
        total += _BYTES_OF_COLOUR * pixels * ((image.mode != "RGB") + is_turned)
    if is_jpeg and ("progressive" in image.info or pixels > _FEW_PIXELS):
        total += _coefficient_bytes(image)
    if image.format == "TIFF":
        total += _tiff_piece_bytes(image)
    return total


def _coefficient_bytes(image: Image.Image) -> int:
    """Of a JPEG of several scans, whose decoder keeps all coefficients, two bytes each.

    Raises:
        OSError: it has more scans than any encoder writes.
    """
    num_scans = _num_scans(image)
    if num_scans > _MOST_SCANS:
        raise OSError(f"it has more than {_MOST_SCANS} scans")
    if num_scans == 1:
        return 0
    sampling: list[tuple[int, int]] = [(across, down) for _, across, down, _ in getattr(image, "layer", [])]
    largest = max((across * down for across, down in sampling), default=1) or 1
    share = sum(across * down for across, down in sampling) / largest
    return math.ceil(2 * share * image.width * image.height)


def _num_scans(image: Image.Image) -> int:
    """Scans of the file's first JPEG, counted to one more than are allowed; those of its thumbnails are not its own."""
    file = image.fp  # type: ignore[attr-defined]  # of ImageFile
    position = file.tell()
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[:2] != _START_OF_SCAN and head[0] == 0xFF:
        file.seek(max(int.from_bytes(head[2:], "big") - 2, 0), 1)
    num_scans, last = 1, b""
    while num_scans <= _MOST_SCANS and (block := file.read(1 << 20)):
        scanned, end, _ = (last + block).partition(_END_OF_IMAGE)
        num_scans += scanned.count(_START_OF_SCAN)
        if end:
            break
        last = block[-1:]
    file.seek(position)
    return num_scans


def _tiff_piece_bytes(image: Image.Image) -> int:
    """Of the largest strip or tile that the decoder unpacks at a time: what the file says, it may exceed the image."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # of TiffImageFile

    def number(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        largest = max(value, default=default) if isinstance(value, tuple) else value
        return largest if isinstance(largest, int) and largest > 0 else default

    if tags.get(_COMPRESSION, 1) == 1:  # read as it lies there
        return 0
    width, height = image.size
    rows = min(number(_ROWS_PER_STRIP, height), height)
    piece = number(_TILE_WIDTH, 0) * number(_TILE_LENGTH, 0) or width * rows
    num_bytes: int = piece * number(_SAMPLES, 1) * -(-number(_BITS, 1) // 8)
    return num_bytes


def check_completeness(image: Image.Image) -> None:
    """Refuse an uncompressed TIFF whose strips do not cover it: Pillow fills in black, gigabytes for a tiny file.

    Raises:
        OSError: the strips leave a part of the image out.
    """
    if image.format != "TIFF":
        return
    tiles = image.tile  # type: ignore[attr-defined]  # of ImageFile
    covered = sum((tile[1][2] - tile[1][0]) * (tile[1][3] - tile[1][1]) for tile in tiles)
    if covered < image.width * image.height:
        raise OSError(f"its strips hold only {covered} of {image.width * image.height} pixels")
