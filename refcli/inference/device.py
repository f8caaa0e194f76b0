"""The device and the precision of a model."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, TypeAlias

import torch

from refcli.engine.device import FOR_INFERENCE, resolve_device
from refcli.engine.measuring.utilisation import product_seconds

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
BF16_PAYS_FROM_PARAMETERS = 1_000_000
"""Smaller models stay in fp32 on a CPU: matrix products take little of their time."""
PROBE_SIDE, PROBES = 256, 6
"""Side of the matrices that are multiplied, and number of trials of both types in turn; the best of each counts, so
that other work on the machine does not decide."""
EMULATED_FACTOR = 4
"""A type that takes this many times as long is emulated: one trial is enough."""
MIN_SPEEDUP = 1.2
"""bf16 must be this many times as fast as fp32, because it costs accuracy."""
CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first available one of CUDA, MPS and CPU.

    Raises:
        UsageError: a device that this machine or this build of torch does not have.
    """
    return resolve_device(name, automatic=FOR_INFERENCE)


def choose_precision(precision: Precision, device: torch.device, num_parameters: int) -> torch.dtype:
    """The type of weights and activations; `auto` is bf16 where the hardware multiplies it faster, else fp32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        is_fast = gpu_has_bf16()
    else:
        is_fast = device.type == "cpu" and num_parameters >= BF16_PAYS_FROM_PARAMETERS and cpu_gains_from_bf16()
    return torch.bfloat16 if is_fast else torch.float32


def gpu_has_bf16() -> bool:
    """Whether the GPU has instructions for bf16 (NVIDIA's from compute capability 8.0 on); others emulate it."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@cache
def cpu_gains_from_bf16() -> bool:
    """Whether bf16 products are faster on this CPU, by measurement: instructions for bf16 do not guarantee it.

    With AMX they are six times as fast as fp32; under a hypervisor that hides AMX and shows AVX-512 BF16, half as fast.
    """
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    fp32 = bf16 = math.inf
    torch.set_num_threads(1)  # several threads wait for each other, which takes longer on a busy machine
    try:
        for _ in range(PROBES):
            fp32 = min(fp32, product_seconds(PROBE_SIDE, cpu, torch.float32))
            bf16 = min(bf16, product_seconds(PROBE_SIDE, cpu, torch.bfloat16))
            if bf16 > EMULATED_FACTOR * fp32:
                break
    finally:
        torch.set_num_threads(threads)
    return fp32 > MIN_SPEEDUP * bf16


def default_batch_size(device: torch.device) -> int:
    """Pairs per forward pass, unless the user chooses."""
    return CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
