"""The visual tokenizer at other sizes, ranges and precisions than the published ones."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from refcli.model.visual_tokenizer import (
    VisualTokenizer,
    VisualTokenizerSettings,
    resample_tokenizer_positions,
    signed_pixels,
)

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "dim": 32,
    "layers": 2,
    "heads": 2,
    "ffn_dim": 64,
    "num_codes": 512,
    "code_dim": 8,
}


@pytest.fixture
def tokenizer() -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(VisualTokenizerSettings(**TINY)).eval()


def test_an_oblong_image_has_one_id_per_patch(tokenizer):
    ids = tokenizer.code_ids(torch.rand(2, 3, 24, 48))
    assert ids.shape == (2, 3 * 6)
    assert ids.min() >= 0
    assert ids.max() < 512


def test_ids_run_row_by_row(tokenizer):
    with torch.no_grad():
        for block in tokenizer.blocks:  # attention and positions off: every patch stands for itself
            block.attention.out.weight.zero_()
        tokenizer.embedding.positions.zero_()
    corner, images = torch.rand(3, 8, 8), torch.zeros(1, 3, 16, 24)
    images[0, :, 8:, :8] = corner  # second row, first column of a 2x3 grid
    blank, ids = tokenizer.code_vectors(images * 0), tokenizer.code_vectors(images)
    assert (blank - ids).abs().amax(-1).gt(1e-6).tolist() == [[False, False, False, True, False, False]]


def test_the_id_is_that_of_the_nearest_code_to_the_unit_vector(tokenizer):
    tokenizer.codebook *= 0.5 + torch.rand(512, 1)  # codes of unequal length: the greatest product is not the nearest
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        vectors = F.normalize(tokenizer.code_vectors(images).double(), dim=-1)
    distances = (vectors[:, :, None] - tokenizer.codebook.double()).square().sum(-1)
    assert torch.equal(tokenizer.code_ids(images), distances.argmin(-1))
    assert not torch.equal(distances.argmin(-1), (vectors @ tokenizer.codebook.double().T).argmax(-1))


def test_the_range_of_the_whole_batch_decides_how_pixels_are_read():
    unit = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert signed_pixels(unit)[:, 0, 0, 0].tolist() == [-1.0, 0.0, 1.0]
    assert signed_pixels(unit * 255)[:, 0, 0, 0].tolist() == [-1.0, 0.0, 1.0]
    beside_bytes = torch.cat([unit, torch.full((1, 3, 2, 2), 255.0)])
    torch.testing.assert_close(signed_pixels(beside_bytes)[2, 0, 0, 0], torch.tensor(1 / 127.5 - 1))


def keys_kernel(distance):
    """The cubic convolution kernel with a = -0.75 (Keys 1981), zero from a distance of 2 on."""
    near = 1.25 * distance**3 - 2.25 * distance**2 + 1
    far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def read_column(column, at):
    """Values of a column of numbers at fractional places, its ends repeated."""
    places = torch.arange(-4.0, len(column) + 4)
    return keys_kernel((at[:, None] - places).abs()) @ F.pad(column[None], (4, 4), mode="replicate")[0]


def test_positions_are_sampled_by_the_scale_factor_and_not_by_the_size():
    torch.manual_seed(0)
    column = torch.randn(14)
    table = torch.cat([torch.tensor([99.0]), column[:, None].expand(14, 14).flatten()]).view(1, 197, 1)
    new = resample_tokenizer_positions(table, old_grid=(14, 14), new_grid=(24, 20))
    assert new.shape == (1, 1 + 24 * 20, 1)
    assert new[0, 0, 0] == 99
    ours, rows = new[0, 1:, 0].view(24, 20), torch.arange(24) + 0.5
    read = read_column(column, rows * 14 / 24.1 - 0.5)
    torch.testing.assert_close(ours, read[:, None].expand(24, 20), rtol=0, atol=1e-5)
    assert (read_column(column, rows * 14 / 24 - 0.5) - ours[:, 0]).abs().max() > 0.05


def test_positions_of_the_same_grid_stay_as_they_are():
    table = torch.randn(1, 17, 8)
    assert resample_tokenizer_positions(table, old_grid=(4, 4), new_grid=(4, 4)) is table


def test_autocast_does_not_change_ids(tokenizer):
    images = torch.rand(4, 3, 64, 64)
    alone = tokenizer.code_ids(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.code_ids(images), alone)
        assert tokenizer.code_vectors(images).dtype == torch.bfloat16


def test_bfloat16_weights_keep_most_ids(tokenizer):
    images = torch.rand(4, 3, 64, 64)
    ids = tokenizer.code_ids(images)
    assert (tokenizer.bfloat16().code_ids(images) == ids).float().mean() > 0.8


def test_a_batch_equals_its_images_one_by_one(tokenizer):
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(tokenizer.code_ids(images), torch.cat([tokenizer.code_ids(image[None]) for image in images]))


def test_an_image_that_is_not_whole_patches_is_refused(tokenizer):
    with pytest.raises(ValueError, match="not multiples of the patch 8"):
        tokenizer.code_ids(torch.rand(1, 3, 32, 36))


@pytest.mark.parametrize(("key", "value"), [("heads", 3), ("image_size", 36), ("layers", 0)])
def test_sizes_that_do_not_fit_are_refused(key, value):
    with pytest.raises(ValidationError):
        VisualTokenizerSettings(**{**TINY, key: value})
