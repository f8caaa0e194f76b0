"""Position tables keep their special rows and resample as the official start does."""

import pytest
import torch
from safetensors.torch import load_file

from refcli.model.positions import resample_vision_positions, sine_positions_2d


@pytest.mark.parametrize(("case", "old", "new"), [("4to6", 4, 6), ("14to24", 14, 24), ("6to4", 6, 4)])
def test_resampling_equals_the_official_arithmetic(fixtures, case, old, new):
    golden = load_file(fixtures / "pos_interp" / "table.safetensors")
    ours = resample_vision_positions(golden[f"{case}.before"], old_grid=(old, old), new_grid=(new, new))
    torch.testing.assert_close(ours, golden[f"{case}.after"], rtol=0, atol=1e-6)


def test_resampling_to_an_oblong_grid_keeps_the_first_three_rows():
    table = torch.randn(3 + 16, 8)
    wide = resample_vision_positions(table, old_grid=(4, 4), new_grid=(3, 7))
    assert wide.shape == (3 + 21, 8)
    assert torch.equal(wide[:3], table[:3])


def test_sine_positions_differ_for_every_patch():
    positions = sine_positions_2d((5, 7), 32)
    distances = torch.cdist(positions, positions) + torch.eye(35) * 9
    assert positions.shape == (35, 32)
    assert distances.min() > 0.1
