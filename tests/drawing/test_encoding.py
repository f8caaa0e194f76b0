"""Images and masks are encoded as files that any reader decodes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from refcli.drawing.encoding import encode_jpeg, encode_png

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_a_png_keeps_every_bit_of_an_array_and_of_an_image():
    for image in (PIXELS, Image.fromarray(PIXELS)):
        with Image.open(io.BytesIO(encode_png(image))) as read:
            np.testing.assert_array_equal(np.asarray(read), PIXELS)


def test_a_bool_mask_becomes_a_png_of_one_bit():
    mask = PIXELS[..., 0] > 128
    with Image.open(io.BytesIO(encode_png(mask))) as read:
        assert read.mode == "1"
        np.testing.assert_array_equal(np.asarray(read), mask)


def test_a_lower_jpeg_quality_gives_a_smaller_file():
    assert len(encode_jpeg(PIXELS, quality=40)) < len(encode_jpeg(PIXELS))
    with Image.open(io.BytesIO(encode_jpeg(PIXELS))) as read:
        assert (read.format, read.size) == ("JPEG", (30, 20))
