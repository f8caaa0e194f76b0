"""The world of processes; one process is a world of size 1."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from refcli.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, on which device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def wrap(self, objective: nn.Module) -> nn.Module:
        """`objective` itself in a world of size 1, else wrapped so that gradients are averaged over all processes."""
        if self.size == 1:
            return objective
        ids = [self.device.index] if self.device.type == "cuda" else None
        # A tower has parameters that only some objectives use (the mask token), which DDP must be told to expect.
        return DistributedDataParallel(objective, device_ids=ids, find_unused_parameters=True)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def mean(self, values: list[float]) -> list[float]:
        """Mean of each value over all processes."""
        if self.size == 1 or not values:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.SUM)
        return [float(value) / self.size for value in shared.tolist()]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: torch does not know the name, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device called {name!r}", where="device", hint="auto, cpu, cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no usable CUDA device", where=f"device {name}", hint="use --device cpu")
    return device


def join_world(device_name: str) -> World:
    """The world that torchrun describes in the environment, else this process alone."""
    device = resolve_device(device_name)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(rank=0, size=1, device=device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend="nccl" if device.type == "cuda" else "gloo")
    return World(rank=dist.get_rank(), size=size, device=device)
