"""Random numbers that depend only on (seed, step, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refcli.data.training.splitmix import GOLDEN_GAMMA, fold, mix, shift_right

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
        state = fold(state, word)
    starts = mix(keys + state)
    counters = torch.arange(1, num + 1, device=keys.device) * GOLDEN_GAMMA
    return shift_right(mix(starts.unsqueeze(1) + counters), 1)


def uniforms(seed: int, step: int, keys: Int[Tensor, " batch"], *, stream: int, num: int) -> Float[Tensor, "batch num"]:
    """float32 numbers uniform in [0, 1): the leading 24 bits of `random_integers`."""
    integers = random_integers(seed, step, keys, stream=stream, num=num)
    return (integers >> (63 - _FLOAT_BITS)).float() * 2.0**-_FLOAT_BITS
