"""Normalised images give their pixels back, and every source of codes works on the tower's grid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refcli.config.pretraining import VisualCodeSettings, VisualTokenizerSettings
from refcli.config.schema import TowerSettings
from refcli.data.training.transforms import IMAGE_MEAN, letterbox
from refcli.errors import ConfigError, UsageError
from refcli.model.visual_tokenizer import VisualTokenizer, nearest_codes
from refcli.pretraining.visual_codes import (
    PROVIDERS,
    TokenizerCodes,
    VisualCodes,
    build_visual_codes,
    cut_patches,
    visual_pixels,
)
from refcli.tables import lookup
from refcli.weights.tokenizers import save_visual_tokenizer

TOWER = TowerSettings(image_size=(28, 42), patch_size=14)
SIZES = VisualTokenizerSettings(
    image_size=64, patch_size=16, dim=32, layers=2, heads=2, ffn_dim=64, num_codes=40, code_dim=8
)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VisualTokenizer(SIZES)


def normalised(levels):
    """One image of 8-bit RGB, through the evaluation transform of a frame of its own size."""
    height, width, _ = levels.shape
    tower = TowerSettings(image_size=(height, width), patch_size=1)
    return torch.from_numpy(letterbox(levels, tower)[0])[None]


def test_the_pixels_are_those_that_were_normalised():
    every_level = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 99)], -1).astype(np.uint8)
    levels = every_level.reshape(16, 16, 3)
    pixels = visual_pixels(normalised(levels))
    torch.testing.assert_close(pixels[0], torch.from_numpy(levels).permute(2, 0, 1) / 255, rtol=0, atol=1e-6)
    assert pixels.min() == 0
    assert pixels.max() == 1  # not above: the tokenizer would take the whole batch for pixels in 0..255


def test_no_level_of_a_byte_is_normalised_to_the_value_of_padding():
    assert all(255 * mean % 1 > 0.1 for mean in IMAGE_MEAN)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    assert (normalised(grey) != 0).all()


def test_padding_becomes_black_and_the_mean_colour_does_not():
    original = Image.new("RGB", (40, 20), tuple(round(255 * mean) for mean in IMAGE_MEAN))
    image, frame = letterbox(original, TowerSettings(image_size=40, patch_size=8))
    pixels = visual_pixels(torch.from_numpy(image)[None])[0]
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[frame.top : frame.top + 20] = True
    assert (pixels[:, ~inside] == 0).all()
    truth = (torch.tensor(IMAGE_MEAN) * 255).round() / 255
    torch.testing.assert_close(pixels[:, inside], truth[:, None].expand(3, 800), rtol=0, atol=1e-6)


def test_patches_are_cut_row_by_row():
    pixels = torch.rand(2, 3, 28, 42)
    patches = cut_patches(pixels, 14).view(2, 2, 3, 3, 14, 14)
    for row in range(2):
        for column in range(3):
            wanted = pixels[:, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            assert torch.equal(patches[:, row, column], wanted)


def test_the_nearest_code_is_the_one_at_the_least_distance():
    vectors, codes = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    assert torch.equal(nearest_codes(vectors, codes), torch.cdist(vectors, codes).argmin(-1))


def test_a_tokenizer_with_patches_of_the_towers_size_sees_the_pixels_as_they_are(tokenizer):
    tower = TowerSettings(image_size=(32, 48), patch_size=16)
    images = torch.randn(2, 3, 32, 48)
    ids = TokenizerCodes(tokenizer, tower).code_ids(images)
    assert ids.shape == (2, 2 * 3)
    assert torch.equal(ids, tokenizer.code_ids(visual_pixels(images)))


def test_a_tokenizer_with_other_patches_gets_an_image_resized_to_the_towers_grid(tokenizer):
    images = torch.randn(2, 3, 28, 42)
    codes = TokenizerCodes(tokenizer, TOWER)
    ids = codes.code_ids(images)
    assert ids.shape == (2, TOWER.grid[0] * TOWER.grid[1])
    assert codes.num_codes == 40
    resized = F.interpolate(visual_pixels(images), (32, 48), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(ids, tokenizer.code_ids(resized.clamp(0, 1)))


def test_a_white_image_is_not_read_as_bytes_after_resizing(tokenizer):
    seen = []
    tokenizer.code_ids = lambda pixels: seen.append(pixels) or torch.zeros(1, 121, dtype=torch.int64)
    white = normalised(np.full((154, 154, 3), 255, np.uint8))
    TokenizerCodes(tokenizer, TowerSettings(image_size=154, patch_size=14)).code_ids(white)
    assert seen[0].shape == (1, 3, 176, 176)
    assert seen[0].max() <= 1
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 176, 176))


def test_codes_have_no_gradient_and_do_not_depend_on_autocast(tokenizer):
    codes = TokenizerCodes(tokenizer, TOWER)
    codes.train()
    images = torch.randn(8, 3, 28, 42, requires_grad=True)
    ids = codes.code_ids(images)
    assert not ids.requires_grad
    assert not any(parameter.requires_grad for parameter in codes.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes.code_ids(images), ids)


def test_every_source_is_a_row_of_the_table_and_of_the_settings():
    assert set(PROVIDERS) == {"tokenizer", "pixel_clusters"}
    for name in PROVIDERS:
        assert issubclass(lookup(PROVIDERS, name, what="source"), VisualCodes)
        assert VisualCodeSettings(source=name).source == name


def test_a_tokenizer_is_built_from_its_weights_directory(tokenizer, tmp_path):
    save_visual_tokenizer(tmp_path / "w", tokenizer, meta={})
    settings = VisualCodeSettings(source="tokenizer", weights=str(tmp_path / "w"))
    images = torch.randn(2, 3, 28, 42)
    built = build_visual_codes(settings, TOWER, device="cpu")
    assert torch.equal(built.code_ids(images), TokenizerCodes(tokenizer, TOWER).code_ids(images))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"source": "tokenizer"}, ConfigError, "no visual tokenizer is given"),
        ({"source": "tokenizer", "weights": "/nowhere"}, UsageError, "no weights called '/nowhere'"),
        ({"source": "pixel_clusters", "weights": "vqkd"}, ConfigError, "pixel clusters have no weights"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        build_visual_codes(VisualCodeSettings(**settings), TOWER, device="cpu")
