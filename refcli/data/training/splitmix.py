"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter-based generator, for NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Integers = TypeVar("Integers", np.ndarray, "Tensor")
"""int64; sums and products wrap around as those of unsigned numbers do. 0-d NumPy arrays warn, tensors do not."""

GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""Increment of the counter, as a signed number."""
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def mix(value: Integers) -> Integers:
    """The finaliser of SplitMix64."""
    value = (value ^ shift_right(value, 30)) * _MULTIPLIERS[0]
    value = (value ^ shift_right(value, 27)) * _MULTIPLIERS[1]
    mixed: Integers = value ^ shift_right(value, 31)
    return mixed


def fold(state: Integers, word: Integers | int) -> Integers:
    """Mix one more word into a state."""
    return mix(state + word + GOLDEN_GAMMA)


def shift_right(value: Integers, bits: int) -> Integers:
    """Logical right shift: `>>` of int64 keeps the sign."""
    shifted: Integers = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted
