"""Images of very many pixels are answered in their own pixels, but read and drawn at a reduced size."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from refcli.config.schema import TowerSettings
from refcli.contracts.prediction import Answer, Target
from refcli.data.reading.images import LARGE_PIXELS, ImageLimits, open_image, open_scaled, read_image
from refcli.data.sources.synthetic import SyntheticSettings, render_scene
from refcli.data.training.transforms import letterbox
from refcli.drawing.contact_sheet import contact_sheet
from refcli.drawing.overlays import LARGEST_DRAWING, draw_answer
from refcli.geometry.frame import Frame
from refcli.geometry.masks import encode_columns, encode_mask, scaled_mask
from refcli.inference.predictor import Predictor

SIDE = 320


def encoded(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    """Slowly changing colours with a dark upper left corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)], -1).astype(np.uint8)
    return Image.fromarray(pixels)


LOW_LIMITS = ImageLimits(large_pixels=100_000, reduced_side=160)


@pytest.mark.parametrize(
    ("width", "height", "file_format", "expected"),
    [
        (640, 480, "JPEG", (160, 120)),
        (479, 641, "JPEG", (120, 161)),
        (640, 480, "PNG", (160, 120)),
        (645, 483, "TIFF", (162, 121)),
        (20_000, 64, "JPEG", (313, 1)),
        (320, 320, "WEBP", (160, 160)),
    ],
)
def test_a_large_image_is_read_at_a_reduced_size(width, height, file_format, expected):
    whole = smooth(width, height)
    scaled = open_scaled(encoded(whole, file_format), limits=LOW_LIMITS)
    assert (scaled.width, scaled.height) == (width, height)
    assert scaled.image.size == expected
    averaged = np.asarray(whole.resize(expected, Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(scaled.image, dtype=int) - averaged).mean() < 4


@pytest.mark.parametrize(("width", "height"), [(70_000, 3), (3, 70_000), (150_001, 70)])
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_long_and_thin_images_are_reduced_tile_by_tile(width, height, mode):
    image = Image.new(mode, (width, height), "white")
    image.paste(
        0 if mode == "L" else (0, 0, 0, 255), (0, 0, width // 2, height) if width > 3 else (0, 0, 3, height // 2)
    )
    scaled = open_scaled(encoded(image, "PNG", compress_level=1), limits=LOW_LIMITS)
    assert (scaled.width, scaled.height) == (width, height)
    assert max(scaled.image.size) == -(-max(width, height) // 64)
    assert scaled.image.getpixel((0, 0)) == (0, 0, 0)
    assert scaled.image.getpixel((scaled.image.width - 1, scaled.image.height - 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "1"])
def test_every_mode_is_reduced_to_the_average_of_its_pixels(mode):
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((np.asarray(smooth(640, 480).convert("L")).astype(float) * 257).astype(kind))
    else:
        image = smooth(640, 480).convert(mode)
    data = encoded(image, "TIFF")
    whole = Image.fromarray(read_image(data))
    averaged = np.asarray(whole.resize((160, 120), Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(open_scaled(data, limits=LOW_LIMITS).image, dtype=int) - averaged).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_a_reduced_image_is_turned_upright(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(640, 480), file_format, exif=exif)
    whole, scaled = open_image(data), open_scaled(data, limits=LOW_LIMITS)
    assert (scaled.width, scaled.height) == whole.size
    reduced = np.asarray(whole.resize(scaled.image.size, Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(scaled.image, dtype=int) - reduced).mean() < 4


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_up_to_the_stated_number_of_pixels_an_image_keeps_every_bit(file_format):
    assert LARGE_PIXELS == 50_000_000
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 3100, 3), dtype=np.uint8))
    data = encoded(noise, file_format)
    tower = TowerSettings(image_size=(SIDE, SIDE))
    whole, scaled = open_image(data), open_scaled(data)
    assert scaled.image.tobytes() == whole.tobytes() == read_image(data).tobytes()
    pixels, frame = letterbox(scaled.image, tower, size=(scaled.width, scaled.height))
    plain, plain_frame = letterbox(whole, tower)
    assert pixels.tobytes() == plain.tobytes()
    assert frame == plain_frame


def test_a_large_image_is_answered_in_its_own_pixels(monkeypatch):
    scene = render_scene(SyntheticSettings(seed=3), "demo", 0)
    example = next(example for example in scene.examples if example.regions)
    image = Image.fromarray(scene.image)
    large = encoded(image.resize((8 * image.width, 8 * image.height), Image.Resampling.BICUBIC), quality=95)
    predictor = Predictor("builtin", device="cpu", precision="fp32")
    (whole,) = predictor.predict(large, example.expression)
    limits = ImageLimits(large_pixels=100_000, reduced_side=2 * max(image.size))
    monkeypatch.setattr("refcli.inference.image_sources.open_scaled", partial(open_scaled, limits=limits))
    (reduced,) = predictor.predict(large, example.expression)
    assert (reduced.width, reduced.height) == (8 * image.width, 8 * image.height) == (whole.width, whole.height)
    assert reduced.targets[0].mask.size == (8 * image.height, 8 * image.width)
    np.testing.assert_allclose(reduced.targets[0].box_xyxy, whole.targets[0].box_xyxy, atol=8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 7), (40, 2500), (700, 3)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mask_in_groups_of_columns_has_the_same_run_lengths(height, width, share):
    mask = np.random.default_rng(height).random((height, width)) < share
    groups = [mask[:, start : start + 64] for start in range(0, width, 64)]
    assert encode_columns(groups, height, width) == encode_mask(mask)


@pytest.mark.parametrize("height", [1, 311, 66_000])
def test_the_columns_of_a_mask_are_those_of_its_bitmap(height):
    frame = Frame.fit(2500 if height < 1000 else 40, height, SIDE, SIDE)
    logits = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0))
    columns = np.concatenate(list(frame.mask_columns(logits[0])), axis=1)
    np.testing.assert_array_equal(columns, frame.masks_to_image(logits)[0])


def test_a_mask_is_scaled_by_the_larger_part_of_each_pixel():
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:40, 24:56] = True
    expected = np.zeros((15, 20), dtype=bool)
    expected[5:10, 6:14] = True
    np.testing.assert_array_equal(scaled_mask(encode_mask(mask), 20, 15), expected)


@pytest.mark.parametrize(("width", "height"), [(30_000, 40), (40, 66_000), (6000, 4000)])
def test_drawings_have_a_largest_side_whatever_the_image(refcli, tmp_path, width, height):
    Image.new("RGB", (width, height), "white").save(tmp_path / "wide.png")
    code, out, _ = refcli("predict", tmp_path / "wide.png", "-e", "the red circle", "--out", tmp_path / "out")
    (drawing,) = (tmp_path / "out/overlays").iterdir()
    with Image.open(drawing) as image:
        assert max(image.size) <= LARGEST_DRAWING + 300  # the caption
    assert code == 0
    assert json.loads(out)["width"] == width


def test_boxes_and_masks_are_drawn_where_they_are_in_the_reduced_image():
    mask = np.zeros((2000, 8000), dtype=bool)
    mask[500:1500, 2000:4000] = True
    answer = Answer(
        "1", "a", "x", 8000, 2000, (Target((2000, 500, 4000, 1500), 0.9, encode_mask(mask)),), False, 0, "w"
    )
    for pixels in (np.full((2000, 8000, 3), 128, np.uint8), np.full((1000, 4000, 3), 128, np.uint8)):
        drawn = np.asarray(draw_answer(pixels, answer))
        side = drawn.shape[1]
        assert side <= LARGEST_DRAWING
        inside, outside = drawn[side // 8, side * 3 // 8], drawn[side // 8, side * 3 // 4]
        assert inside[0] > 150
        assert (outside < 100).all()


def test_a_very_tall_drawing_does_not_stretch_the_contact_sheet():
    sheet = contact_sheet([Image.new("RGB", (100, 60_000), "red"), Image.new("RGB", (100, 50), "blue")], cell_width=200)
    assert sheet.height < 500
    assert sheet.getpixel((24 + 99, 200)) == (255, 0, 0)


MEASURED = """
import resource, sys
from PIL import Image
from refcli.recipes.predict import Output, predict
from pathlib import Path
import refcli.inference.output_folder
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
summary = predict([sys.argv[1]], ["the red circle"], out=Output(Path(sys.argv[2])), on_answer=lambda answer: None)
assert summary.exit_code == 0, summary
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in kB on Linux")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_two_hundred_megapixels_are_answered_and_drawn_within_a_few_times_their_size(tmp_path, file_format):
    image = Image.new("RGB", (20_000, 10_000), "gray")
    image.paste((220, 20, 30), (5000, 3000, 9000, 7000))
    path = tmp_path / f"pano.{file_format.lower()}"
    image.save(path, compress_level=1)
    command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_800_000
    (drawing,) = (tmp_path / "out/overlays").iterdir()
    with Image.open(drawing) as drawn:
        assert max(drawn.size) <= LARGEST_DRAWING + 300


def test_the_mask_file_of_an_ordinary_image_keeps_its_size(refcli, tmp_path):
    scene = render_scene(SyntheticSettings(seed=3), "demo", 0)
    example = next(example for example in scene.examples if example.regions)
    Image.fromarray(scene.image).save(tmp_path / "a.png")
    _, out, _ = refcli("predict", tmp_path / "a.png", "-e", example.expression, "--out", tmp_path / "out")
    mask = json.loads(out)["targets"][0]["mask"]
    (file,) = (tmp_path / "out/masks").iterdir()
    with Image.open(file) as image:
        assert [image.height, image.width] == mask["size"] == list(scene.image.shape[:2])
