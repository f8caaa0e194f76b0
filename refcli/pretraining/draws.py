"""Random numbers that depend on (seed, step, sample) and on nothing else: SplitMix64 as a counter-based generator."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""Increment of SplitMix64 (Steele, Lea and Flood 2014) as a signed number."""
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_FLOAT_BITS = 24
"""Bits that float32 holds exactly below 1."""


def sample_keys(ids: Sequence[str]) -> Int[Tensor, " batch"]:
    """A number in 0..2^63 for every sample id, the same in every process and run."""
    digests = (blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def random_integers(
    seed: int, step: int, keys: Int[Tensor, " batch"], *, stream: int, num: int
) -> Int[Tensor, "batch num"]:
    """Integers uniform in 0..2^63, on the device of `keys`.

    Number j of a sample is a function of (seed, step, its key, stream, j): neither the other samples of the batch nor
    `num` change it, and every device computes the same.

    Args:
        seed, step: of the run.
        keys: int64, one for each sample; see `sample_keys`.
        stream: what the numbers are for; two streams are independent.
        num: numbers for each sample.
    """
    state = torch.zeros((), dtype=torch.int64)
    for word in (seed, step, stream):
        state = _mixed(state + word + GOLDEN_GAMMA)
    starts = _mixed(keys + state)
    counters = torch.arange(1, num + 1, device=keys.device) * GOLDEN_GAMMA
    return _shifted(_mixed(starts.unsqueeze(1) + counters), 1)


def uniforms(seed: int, step: int, keys: Int[Tensor, " batch"], *, stream: int, num: int) -> Float[Tensor, "batch num"]:
    """float32 numbers uniform in [0, 1): the leading 24 bits of `random_integers`."""
    integers = random_integers(seed, step, keys, stream=stream, num=num)
    return (integers >> (63 - _FLOAT_BITS)).float() * 2.0**-_FLOAT_BITS


def _mixed(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """SplitMix64's finaliser; int64 products wrap round as unsigned ones do."""
    x = (x ^ _shifted(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*n"], bits: int) -> Int[Tensor, "*n"]:
    """Logical right shift: torch's own shift of int64 keeps the sign."""
    return torch.bitwise_and(x >> bits, 2 ** (64 - bits) - 1)
