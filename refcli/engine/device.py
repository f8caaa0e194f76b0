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
        return next(device for device in map(torch.device, automatic) if _is_there(device))
    try:
        device = torch.device(name)
        if str(device) != name:
            raise ValueError(f"{name} would be {device}")  # torch keeps eight bits of the number
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"there is no device called {name!r}", where="device", hint="use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if not _is_there(device):
        number = "" if device.index is None else f" {device.index}"
        raise UsageError(
            f"this machine has no usable {device.type.upper()} device{number}",
            where=f"device {name}",
            hint="use --device cpu",
        )
    return device


def _is_there(device: torch.device) -> bool:
    """Whether torch can use a device here."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index is None or device.index < torch.cuda.device_count())
    if device.type == "mps":
        return torch.backends.mps.is_available()
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # not compiled in, no hardware, or nothing that computes
        return False
    return True
