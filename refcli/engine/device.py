"""The device that a name means on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from refcli.errors import UsageError

FOR_TRAINING = ("cuda", "cpu")
FOR_INFERENCE = ("cuda", "mps", "cpu")


def resolve_device(name: str, *, automatic: Sequence[str] = FOR_TRAINING) -> torch.device:
    """The device called `name`; "auto" is the first of `automatic` that this machine has.

    Raises:
        UsageError: torch does not know the name, or the device is not there.
    """
    if name == "auto":
        return torch.device(next(kind for kind in automatic if _is_there(kind)))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"there is no device called {name!r}", where="device", hint="use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if not _is_there(device.type):
        raise UsageError(
            f"this machine has no usable {device.type.upper()} device", where=f"device {name}", hint="use --device cpu"
        )
    return device


def _is_there(kind: str) -> bool:
    """Whether torch can use a kind of device here; kinds other than CUDA and MPS are taken at their word."""
    if kind == "cuda":
        return torch.cuda.is_available()
    return kind != "mps" or torch.backends.mps.is_available()
