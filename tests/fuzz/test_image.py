"""Any bytes are an image or an ImageError; damaged headers cost neither time nor memory."""

from __future__ import annotations

import io
import struct
import warnings
from contextlib import suppress

import numpy as np
import pytest
from harness import NUM_INPUTS, damaged, fuzz
from hypothesis import strategies as st
from PIL import Image

from refcli.data.reading.images import open_scaled, probe, read_image
from refcli.errors import ImageError

FORMATS: tuple[tuple[str, str, dict], ...] = (
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": 0}),
    ("PNG", "I;16", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "F", {"compression": "tiff_deflate"}),
    ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("PPM", "RGB", {}),
    ("TGA", "RGB", {"compression": "tga_rle"}),
    ("PCX", "RGB", {}),
    ("SGI", "RGB", {}),
    ("JPEG2000", "RGB", {}),
    ("AVIF", "RGB", {}),
    ("QOI", "RGB", {}),
    ("ICO", "RGBA", {}),
    ("EPS", "RGB", {}),
    ("DDS", "RGB", {}),
)


def valid_files() -> list[bytes]:
    """One small file of every kind that this Pillow writes, some of them rotated by EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (18, 26, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for file_format, mode, options in FORMATS:
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        for more in ({}, {"exif": exif}):
            buffer = io.BytesIO()
            try:
                image.save(buffer, file_format, **options, **more)
            except (OSError, KeyError, ValueError, TypeError):  # not in this build
                continue
            files.append(buffer.getvalue())
    return files


@st.composite
def with_large_numbers(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with a number in its header replaced: a size, an offset or a count."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("<H", ">H", "<I", ">I")))
        largest = (1 << 8 * struct.calcsize(kind)) - 1
        number = draw(
            st.one_of(st.integers(0, largest), st.sampled_from((0, 1, largest, largest // 2, 14_000, 60_000)))
        )
        at = draw(st.integers(0, min(len(content), 400)))
        content[at : at + struct.calcsize(kind)] = struct.pack(kind, min(number, largest))
    return bytes(content)


def inputs() -> st.SearchStrategy[bytes]:
    files = valid_files()
    return st.one_of(damaged(files), with_large_numbers(files))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_bytes_are_an_image_or_an_error(tmp_path, num_inputs):
    path = tmp_path / "x.img"

    def read(content: bytes) -> None:
        warnings.simplefilter("ignore")
        path.write_bytes(content)
        for call in (lambda: read_image(content), lambda: open_scaled(path), lambda: probe(path)):
            with suppress(ImageError):
                call()

    fuzz(inputs(), read, num_inputs)
