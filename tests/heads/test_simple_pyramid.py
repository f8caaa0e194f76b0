"""The simple feature pyramid: its published size, the shapes of its maps, and what each level computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refcli.heads.shared.simple_pyramid import SimplePyramid


@pytest.mark.parametrize(
    ("dim", "num_parameters", "giga_macs"), [(768, 3_349_248, 3.03), (1024, 4_988_032, 4.51)], ids=["base", "large"]
)
def test_its_size_fits_the_totals_of_shared_ris(dim, num_parameters, giga_macs):
    with torch.device("meta"):
        pyramid = SimplePyramid(dim)
        patches = torch.empty(1, 900, dim)
    with FlopCounterMode(display=False) as counter:
        maps = pyramid(patches, (30, 30))
    assert sum(parameter.numel() for parameter in pyramid.parameters()) == num_parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)
    assert [tuple(level.shape[1:]) for level in maps] == [
        (128, 120, 120), (256, 60, 60), (512, 30, 30), (1024, 15, 15),
    ]  # fmt: skip


def test_odd_grids_are_doubled_exactly_and_halved_upwards():
    maps = SimplePyramid(16, (4, 6, 8, 10))(torch.randn(2, 35, 16), (5, 7))
    assert [tuple(level.shape) for level in maps] == [(2, 4, 20, 28), (2, 6, 10, 14), (2, 8, 5, 7), (2, 10, 3, 4)]


def test_a_place_of_the_fine_maps_comes_from_the_patch_below_it():
    torch.manual_seed(0)
    pyramid = SimplePyramid(16, (4, 6, 8, 10))
    patches = torch.randn(1, 12, 16)
    moved = patches.clone()
    moved[0, 1 * 4 + 2] += torch.randn(16)
    before, after = pyramid(patches, (3, 4)), pyramid(moved, (3, 4))
    for level, factor in (("stride4", 4), ("stride8", 2), ("stride16", 1)):
        changed = (getattr(before, level) != getattr(after, level)).any(1)[0]
        expected = torch.zeros_like(changed)
        expected[factor : 2 * factor, 2 * factor : 3 * factor] = True
        assert torch.equal(changed, expected), level


def test_every_level_is_normalised_over_its_channels():
    torch.manual_seed(0)
    for level in SimplePyramid(16, (4, 6, 8, 10))(100 * torch.randn(2, 12, 16), (3, 4)):
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), rtol=0, atol=1e-4)
        torch.testing.assert_close(level.var(1, correction=0), torch.ones_like(level[:, 0]), rtol=0, atol=1e-2)


def test_the_coarsest_level_reads_the_largest_of_four_patches():
    pyramid = SimplePyramid(4, (4, 4, 4, 4))
    patches = torch.randn(1, 4, 4)
    largest = patches.amax(1)
    convolution, norm = pyramid.stride32
    expected = norm(convolution(largest[:, :, None, None]))
    torch.testing.assert_close(pyramid(patches, (2, 2)).stride32, expected)
