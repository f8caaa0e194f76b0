"""Where a model runs, and in which precision."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, TypeAlias

import torch

from refcli.engine.device import FOR_INFERENCE, resolve_device
from refcli.engine.measuring.utilisation import product_seconds

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
BF16_PAYS_FROM_PARAMETERS = 1_000_000
"""Smaller models stay in fp32 on a CPU: products of matrices are not what they spend their time on."""
PROBE_SIDE, PROBES = 256, 6
"""Rows of the matrices that are tried, and how often both types are, in turn: the best of each counts, so that other
work on the machine does not decide."""
HOPELESS = 4
"""Where bf16 takes so many times as long it is emulated, slowly: one try is enough."""
WORTH_ROUNDING = 1.2
"""How many times as fast as fp32 bf16 has to be: it costs accuracy."""
CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32


def choose_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is there.

    Raises:
        UsageError: a device that this machine or this torch does not have.
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
    """Whether bf16 products are worth it on this CPU, as measured: to have instructions for them says little.

    With AMX they are six times as fast as fp32; under a hypervisor that hides AMX and shows AVX-512 BF16 they were seen
    half as fast.
    """
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    fp32 = bf16 = math.inf
    torch.set_num_threads(1)  # several wait for each other, the longer the busier the machine is
    try:
        for _ in range(PROBES):
            fp32 = min(fp32, product_seconds(PROBE_SIDE, cpu, torch.float32))
            bf16 = min(bf16, product_seconds(PROBE_SIDE, cpu, torch.bfloat16))
            if bf16 > HOPELESS * fp32:
                break
    finally:
        torch.set_num_threads(threads)
    return fp32 > WORTH_ROUNDING * bf16


def default_batch_size(device: torch.device) -> int:
    """Pairs per forward pass where the user does not say."""
    return CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
