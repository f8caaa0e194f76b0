"""SplitMix64 gives the published numbers, on NumPy arrays and on torch tensors."""

import numpy as np
import pytest
import torch

from refcli.data.training.splitmix import GOLDEN_GAMMA, fold, mix, shift_right

PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
"""The first outputs for the seed 1234567."""


@pytest.mark.parametrize("integers", [np.array, torch.tensor])
def test_the_numbers_of_a_seed_are_the_published_ones(integers):
    counters = np.arange(1, 5) * GOLDEN_GAMMA + 1234567
    found = mix(integers(counters.tolist()))
    assert [number % 2**64 for number in found.tolist()] == PUBLISHED


def test_arrays_and_tensors_give_the_same_numbers():
    words = [-(2**63), -1, 0, 1, 2**63 - 1]
    assert fold(np.array(words), 7).tolist() == fold(torch.tensor(words), 7).tolist()
    assert shift_right(np.array([-1]), 1).tolist() == shift_right(torch.tensor([-1]), 1).tolist() == [2**63 - 1]
