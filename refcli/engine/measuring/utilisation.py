"""How fast a device multiplies matrices: the reference for the arithmetic of training."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

FIRST_SIDE, LARGEST_SIDE = 256, 8192
"""Rows of the square matrices that are measured; larger ones are no faster on any device known to us."""
REPEATS = 3
BUDGET_SECONDS = 0.4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def gemm_peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """FLOP/s that this process gets from the device for its fastest square matrix product.

    The denominator of `flops_utilisation`, measured once per process in less than half a second, in the precision and
    with the threads and TF32 switches of the run. The side is doubled while the next size fits the time; the best rate
    counts. Processes that share a machine measure at the same time, so each gets its share. Random generators
    stay untouched.
    """
    peak = spent = 0.0
    side = FIRST_SIDE
    while True:
        seconds = product_seconds(side, device, DTYPES[precision])
        peak = max(peak, 2 * side**3 / seconds)
        cost = (1 + REPEATS) * seconds
        spent += cost
        side *= 2
        if side > LARGEST_SIDE or spent + 8 * cost > BUDGET_SECONDS:  # twice the side is eight times the work
            return peak


def product_seconds(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of the fastest of a few products of two square matrices, after a warm-up."""
    matrix = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    times = []
    for _ in range(1 + REPEATS):
        before = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a value waits for the device
        times.append(time.perf_counter() - before)
    return max(min(times[1:]), 1e-9)
