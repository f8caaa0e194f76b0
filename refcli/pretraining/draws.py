"""Random numbers that depend only on (seed, step, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

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


class SampleDraws(NamedTuple):
    """The random numbers of one step, a row of its own for every sample.

    Number j of a sample is a function of (seed, step, its key, stream, j): neither the other samples of the batch nor
    how many numbers are drawn change it, and every device computes the same.
    """

    seed: int
    step: int
    keys: Int[Tensor, " batch"]
    """int64, one for each sample, on the device of the numbers; see `sample_keys`."""

    def integers(self, num: int, *, stream: int) -> Int[Tensor, "batch num"]:
        """`num` integers for each sample, uniform in 0..2^63.

        Args:
            num: numbers for each sample.
            stream: the purpose of the numbers; two streams are independent.
        """
        state = torch.zeros((), dtype=torch.int64)
        for word in (self.seed, self.step, stream):
            state = fold(state, word)
        starts = mix(self.keys + state)
        counters = torch.arange(1, num + 1, device=self.keys.device) * GOLDEN_GAMMA
        return shift_right(mix(starts.unsqueeze(1) + counters), 1)

    def uniforms(self, num: int, *, stream: int) -> Float[Tensor, "batch num"]:
        """float32 numbers uniform in [0, 1): the leading 24 bits of `integers`."""
        return (self.integers(num, stream=stream) >> (63 - _FLOAT_BITS)).float() * 2.0**-_FLOAT_BITS
