"""The random generators of a process: seed, take, put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed torch (every device), numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the torch, numpy and python generators, as values that `weights_only` loading accepts.

    Args:
        device: where this process computes; of all GPUs, only its own counts.
    """
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_random_state(saved: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` took; a GPU's generator stays as it is where a CPU was used before."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
    name, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, next_gauss = saved["python"]
    random.setstate((version, tuple(numbers), next_gauss))


@contextmanager
def undisturbed_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside does not change what is drawn afterwards."""
    saved = random_state(device)
    try:
        yield
    finally:
        restore_random_state(saved, device)
