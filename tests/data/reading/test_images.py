"""Every kind of image file becomes upright 8-bit RGB, and a bad one gives an ImageError."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from refcli.data.reading.images import ImageLimits, read_image
from refcli.errors import ImageError


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def two_tone():
    """Red above, blue below: 6 wide, 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :, 0] = 255
    pixels[2:, :, 2] = 255
    return Image.fromarray(pixels)


def test_rgb_pixels_are_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), path.read_bytes()):
        read = read_image(source)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation):
    # The transformation that the EXIF standard prescribes for the stored pixels.
    upright = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    read = read_image(encoded(Image.fromarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(read, upright(stored))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_black_and_white_stay_black_and_white_in_every_mode(mode):
    whites = {"I;16": 65535, "I": 65535, "F": 1.0}
    if mode in whites:
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        source = Image.fromarray(np.array([[0, whites[mode]], [whites[mode], 0]], dtype=kind))
    else:
        source = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("RGB").convert(mode)
    read = read_image(encoded(source, "JPEG" if mode == "YCbCr" else "TIFF", quality=95))
    assert read.shape == (2, 2, 3)
    np.testing.assert_allclose(read[..., 0], [[0, 255], [255, 0]], atol=3)
    np.testing.assert_allclose(read, read[..., :1].repeat(3, axis=2), atol=3)


def test_sixteen_bit_grey_keeps_its_scale():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    read = read_image(encoded(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(read[..., 1].ravel(), np.arange(256))
    dark = read_image(encoded(Image.fromarray(ramp // 200), "PNG"))
    assert dark.max() == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_become_white(mode):
    source = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    source.putpixel((1, 0), (0, 0, 0, 255))
    read = read_image(encoded(source.convert(mode), "TIFF" if mode == "PA" else "PNG"))
    assert read.tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_a_transparent_palette_colour_becomes_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    read = read_image(encoded(palette, "PNG", transparency=0))
    assert read.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_a_cmyk_jpeg_keeps_its_colours():
    read = read_image(encoded(two_tone().resize((60, 40)).convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(read[5, 30], [255, 0, 0], atol=12)
    np.testing.assert_allclose(read[35, 30], [0, 0, 255], atol=12)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    read = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert read[1, 1].tolist() == [255, 0, 0]


def test_an_image_of_one_pixel_is_read():
    assert read_image(encoded(Image.new("RGB", (1, 1), "white"), "JPEG")).shape == (1, 1, 3)


@pytest.mark.parametrize("kept", [0, 1, 20, 200])
def test_a_truncated_file_is_an_image_error(tmp_path, kept):
    path = tmp_path / "cut.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(encoded(noise, "JPEG")[:kept])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.where == str(path)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO"])
def test_damaged_bytes_give_pixels_or_an_image_error(file_format):
    data = encoded(two_tone().resize((40, 30)), file_format)
    rng = random.Random(file_format)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            outcomes.add(read_image(bytes(damaged[: rng.randint(1, len(damaged))])).ndim)
        except ImageError as error:
            outcomes.add(error.where)
    assert "image bytes" in outcomes
    assert outcomes <= {3, "image bytes"}


def test_a_missing_file_or_one_that_is_not_an_image_is_named(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    for source, message in [(tmp_path / "missing.jpg", "no such"), (tmp_path, "directory"), (text, "not an image")]:
        with pytest.raises(ImageError, match=message) as caught:
            read_image(source)
        assert caught.value.where == str(source)
    with pytest.raises(ImageError) as caught:
        read_image(b"", name="upload 7")
    assert caught.value.where == "upload 7"


def test_an_image_of_too_many_pixels_is_refused_before_decoding():
    limits = ImageLimits(max_pixels=99)
    limit = Image.MAX_IMAGE_PIXELS
    assert read_image(encoded(Image.new("L", (9, 11)), "PNG"), limits=limits).shape == (11, 9, 3)
    with pytest.raises(ImageError, match="10 x 10 pixels"):
        read_image(encoded(Image.new("L", (10, 10)), "PNG"), limits=limits)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_images_beyond_pillows_own_limit_are_read_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert read_image(encoded(Image.new("L", (20, 20)), "PNG")).shape == (20, 20, 3)
    assert not recwarn.list


def test_the_pixels_are_writable():
    read_image(encoded(two_tone(), "PNG"))[0, 0] = 7
