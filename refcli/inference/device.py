"""Where a model runs, and in which precision."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from refcli.engine.device import FOR_INFERENCE, resolve_device

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
BF16_PAYS_FROM_PARAMETERS = 1_000_000
"""On a CPU with bf16 instructions models from 7 M parameters on run at least twice as fast in bf16."""
CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32


def choose_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is there.

    Raises:
        UsageError: a device that this machine or this torch does not have.
    """
    return resolve_device(name, automatic=FOR_INFERENCE)


def choose_precision(precision: Precision, device: torch.device, num_parameters: int) -> torch.dtype:
    """The type of weights and activations; `auto` is bf16 where the hardware multiplies it fast, else fp32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = device.type == "cpu" and num_parameters >= BF16_PAYS_FROM_PARAMETERS and cpu_multiplies_bf16()
    return torch.bfloat16 if is_fast else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 matrix products (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def default_batch_size(device: torch.device) -> int:
    """Pairs per forward pass where the user does not say."""
    return CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
