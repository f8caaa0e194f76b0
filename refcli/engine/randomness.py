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


def random_state() -> dict[str, Any]:
    """States of the torch, numpy and python generators, as values that `weights_only` loading accepts."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_random_state(saved: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
    name, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, next_gauss = saved["python"]
    random.setstate((version, tuple(numbers), next_gauss))


@contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Whatever is drawn inside does not change what is drawn afterwards."""
    saved = random_state()
    try:
        yield
    finally:
        restore_random_state(saved)
