"""Images that claim too large a size, never end, or hide content are refused in one line; the others are read."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from refcli.data.reading.images import ImageLimits, open_image, open_scaled, probe, read_image
from refcli.errors import ImageError

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES, ROWS, SIZES = (
    256,
    257,
    258,
    259,
    262,
    273,
    277,
    278,
    279,
)
TILE_WIDTH, TILE_LENGTH, TILES, TILE_SIZES, FORMAT = 322, 323, 324, 325, 339
DEFLATE = 8


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian TIFF of one directory, all values 32 bits wide; its data lie at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def grey_tiff(width: int, length: int, rows: int, **tags: int) -> bytes:
    """An uncompressed 32-bit grey TIFF with one strip of `rows` rows."""
    data = bytes(4 * width * rows)
    return tiff(
        {WIDTH: width, LENGTH: length, BITS: 32, COMPRESSION: 1, PHOTOMETRIC: 1, STRIPS: 8, SAMPLES: 1, FORMAT: 2}
        | {ROWS: rows, SIZES: len(data)},
        data,
    )


@pytest.mark.parametrize("length", [25, 4_259_844])
def test_an_uncompressed_tiff_whose_strips_do_not_cover_it_is_refused(length):
    assert read_image(grey_tiff(32, 24, 24)).shape == (24, 32, 3)
    with pytest.raises(ImageError, match="strips hold only 768 of"):
        read_image(grey_tiff(32, length, 24))


def test_a_tile_larger_than_its_image_counts_as_what_decoding_needs():
    tags = {WIDTH: 16, LENGTH: 16, BITS: 8, COMPRESSION: DEFLATE, PHOTOMETRIC: 1, TILES: 8, SAMPLES: 1}
    tags |= {TILE_WIDTH: 32768, TILE_LENGTH: 16384, TILE_SIZES: 4}
    with pytest.raises(ImageError, match=r"decoding the image needs 0\.5 GB"):
        read_image(tiff(tags, b"data"), limits=ImageLimits(max_bytes=1_000_000))


@pytest.mark.parametrize(
    ("mode", "file_format", "bytes_per_pixel"),
    [
        ("RGB", "PNG", 4),
        ("RGBA", "PNG", 8),
        ("LA", "PNG", 8),
        ("L", "JPEG", 5),
        ("P", "GIF", 5),
        ("I;16", "PNG", 6),
        ("CMYK", "JPEG", 8),
        ("F", "TIFF", 8),
        ("RGB", "WEBP", 16),
    ],
)
def test_an_image_is_limited_by_the_bytes_that_decoding_needs(mode, file_format, bytes_per_pixel):
    data = encoded(Image.new(mode, (100, 90)), file_format)
    needed = bytes_per_pixel * 100 * 90
    assert open_image(data, limits=ImageLimits(max_bytes=2 * needed)).size == (100, 90)
    with pytest.raises(ImageError, match="decoding the image needs") as caught:
        open_image(data, limits=ImageLimits(max_bytes=needed - 1))
    assert caught.value.hint


def test_a_turned_and_a_progressive_image_need_more():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (100, 100))
    limits = ImageLimits(max_bytes=4 * 100 * 100)
    assert open_image(encoded(image, "JPEG"), limits=limits).size == (100, 100)
    for options in ({"exif": exif}, {"progressive": True}):
        with pytest.raises(ImageError, match="decoding the image needs"):
            open_image(encoded(image, "JPEG", **options), limits=limits)


def test_all_threads_share_the_memory_for_decoding(monkeypatch):
    data = encoded(Image.new("L", (100, 100)), "PNG")
    limits = ImageLimits(max_bytes=5 * 100 * 100)
    convert, inside, most, lock = Image.Image.convert, 0, 0, threading.Lock()

    def counting(image: Image.Image, *arguments, **options) -> Image.Image:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.005)
        with lock:
            inside -= 1
        return convert(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", counting)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: open_image(data, limits=limits).size, range(24)))
    assert sizes == [(100, 100)] * 24
    assert most == 1


def test_an_uncompressed_tiff_of_one_strip_needs_its_pixels_only():
    data = encoded(Image.new("RGB", (100, 100)), "TIFF", tiffinfo={ROWS: 100})
    assert open_image(data, limits=ImageLimits(max_bytes=4 * 100 * 100)).size == (100, 100)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_refused_at_once_and_the_other_images_are_answered(refcli, tmp_path):
    os.mkfifo(tmp_path / "f.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    requests = tmp_path / "r.jsonl"
    lines = [{"image": name, "expression": "the red circle"} for name in ("f.png", "a.png", os.devnull)]
    requests.write_text("\n".join(map(json.dumps, lines)))
    code, out, err = refcli("predict", requests)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert ["not a regular file" in (answer["error"] or "") for answer in answers] == [True, False, True]
    assert "not a regular file" in err
    with pytest.raises(ImageError, match="not a regular file"):
        probe(tmp_path / "f.png")


@pytest.mark.parametrize("file_format", ["EPS", "ICO", "ICNS", "PDF"])
def test_formats_that_start_programs_or_hide_other_sizes_are_refused(file_format):
    with pytest.raises(ImageError, match="not an image"):
        read_image(encoded(Image.new("RGB", (64, 64), "red"), file_format))


def test_a_progressive_jpeg_of_very_many_scans_is_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert read_image(data).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="scans"):
        read_image(data[:last] + data[last:-2] * 600 + data[-2:])


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"x" * 60_000])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_with_unreadable_metadata_is_read(exif):
    assert read_image(encoded(Image.new("RGB", (8, 6), "red"), "JPEG", exif=exif)).shape == (6, 8, 3)


@pytest.mark.parametrize(("num_texts", "size"), [(1, 3_000_000), (80, 1_000_000)])
def test_a_png_with_long_compressed_texts_is_read(num_texts, size):
    info = PngInfo()
    for number in range(num_texts):
        info.add_text(f"key {number}", "x" * size, zip=True)
    assert read_image(encoded(Image.new("RGB", (8, 6), "red"), "PNG", pnginfo=info)).shape == (6, 8, 3)


def test_a_png_with_a_long_colour_profile_is_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (8, 6), "red"), "PNG", icc_profile=b"x" * 3_000_000))
    assert open_scaled(path).image.getpixel((0, 0)) == (255, 0, 0)
    assert probe(path).size == (8, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 99, "a HEIC image; convert it"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1heic" + b"\x00" * 99, "a HEIC image; convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\x00" * 5000, r"can be read\n"),
        (b"just text", r"can be read\n"),
    ],
)
def test_a_file_that_is_mistaken_for_an_image_is_identified(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        open_scaled(path)


def test_a_file_in_the_place_of_a_folder_is_an_image_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(ImageError, match="no such image"):
        open_scaled(tmp_path / "a.jpg/b.jpg")


@pytest.mark.parametrize("name", ["a\x00b.jpg", "x" * 5000 + ".jpg", "\ud83d.jpg"])
def test_a_name_that_no_file_can_have_is_an_image_error(name):
    with pytest.raises(ImageError) as caught:
        open_scaled(name)
    assert caught.value.hint
