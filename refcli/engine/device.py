"""The device to compute on, and how the process keeps freed memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence

import torch

from refcli.errors import UsageError

FOR_TRAINING = ("cuda", "cpu")
FOR_INFERENCE = ("cuda", "mps", "cpu")
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
"""Parameter numbers of mallopt(3), from glibc's malloc.h."""
TOP_PAD_BYTES = 256 * 2**20
UNLIMITED_BYTES = 2**31 - 1
"""mallopt takes a C int."""


def resolve_device(name: str, *, automatic: Sequence[str] = FOR_TRAINING) -> torch.device:
    """The device called `name`; "auto" is the first of `automatic` that this machine has.

    Raises:
        UsageError: torch does not know the name, or the device is not available.
    """
    if name == "auto":
        return next(device for device in map(torch.device, automatic) if _is_available(device))
    try:
        device = torch.device(name)
        if str(device) != name:
            raise ValueError(f"{name} would be {device}")  # torch truncates the index to eight bits
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"there is no device called {name!r}", where="device", hint="use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if not _is_available(device):
        number = "" if device.index is None else f" {device.index}"
        raise UsageError(
            f"this machine has no usable {device.type.upper()} device{number}",
            where=f"device {name}",
            hint="use --device cpu",
        )
    return device


def keep_freed_pages() -> bool:
    """Make glibc's malloc keep freed memory instead of returning it to the kernel; returns whether it accepted.

    Every step and every batch allocates and frees the same large activations. By default malloc maps each of them
    anew, and the kernel provides it page by page through page faults, which cost a small model more than its
    arithmetic. Only later allocations are affected. Other C libraries have no mallopt; there the call does nothing.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    accepted = [
        mallopt(M_MMAP_THRESHOLD, UNLIMITED_BYTES),
        mallopt(M_TRIM_THRESHOLD, UNLIMITED_BYTES),
        mallopt(M_TOP_PAD, TOP_PAD_BYTES),
    ]
    return all(accepted)


def _is_available(device: torch.device) -> bool:
    """Whether torch can use a device here."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index is None or device.index < torch.cuda.device_count())
    if device.type == "mps":
        return torch.backends.mps.is_available()
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # not compiled in, no hardware, or no kernels
        return False
    return True
