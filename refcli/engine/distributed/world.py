"""The world of processes; one process is a world of size 1."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from refcli.engine.device import resolve_device
from refcli.engine.distributed.sharding import shard
from refcli.engine.distributed.stores import error_report_store, set_collective_interface, world_store
from refcli.errors import ConfigError

ValueT = TypeVar("ValueT")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, while the main one validates and saves."""
ROUND_VARIABLE = "REFCLI_ROUND"
"""A name shared by processes that were started together, and by no others."""
STORE_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, on which device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def wrap(
        self, objective: nn.Module, *, parallel: Literal["ddp", "fsdp"] = "ddp", static_graph: bool = False
    ) -> nn.Module:
        """`objective` itself in a world of size 1, else a module that averages its gradients over all processes.

        Build the optimiser afterwards: `fsdp` replaces the parameters.

        Args:
            parallel: `ddp`: every process has the whole objective; `fsdp`: it is sharded in place (`engine.sharding`).
            static_graph: every step uses the same parameters, so that `ddp` need not look for unused ones. It excludes
                `no_gradient_sync`.
        """
        if self.size == 1:
            return objective
        if parallel == "fsdp":
            shard(objective, self.device)
            return objective
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            objective, device_ids=ids, static_graph=static_graph, find_unused_parameters=not static_graph
        )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
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

    def gather(self, value: ValueT) -> list[ValueT]:
        """The value of every process by rank, in every process.

        Only plain values and tensors, which arrive on the CPU: data from the network is unpickled with `weights_only`.
        """
        if self.size == 1:
            return [value]
        packed = io.BytesIO()
        torch.save(value, packed)
        content = torch.frombuffer(packed.getbuffer(), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)], device=self.device))
        longest = int(torch.cat(sizes).max())
        padded = F.pad(content, (0, longest - len(content)))
        contents = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(contents, padded)
        return [
            torch.load(io.BytesIO(one[:size].cpu().numpy().tobytes()), weights_only=True, map_location="cpu")
            for one, size in zip(contents, torch.cat(sizes).tolist(), strict=True)
        ]

    def wait(self) -> None:
        """Return when every process has called it."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group; a wrapped objective must not be used afterwards.

        Gloo's threads release tensors some time after a communication, for which they need the interpreter; if that is
        already shutting down, they abort the process. They end with the last reference to the group, and the wrapped
        objective holds one: it is released first, from the frames of a propagating error and from reference cycles.
        """
        if self.size == 1:
            return
        error = sys.exc_info()[1]
        if error is not None and self.device.type == "cuda":
            return  # NCCL can only be shut down by all processes together
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
        dist.destroy_process_group()


@contextmanager
def no_gradient_sync(wrapped: nn.Module) -> Iterator[None]:
    """Backward passes inside accumulate gradients in their process; the next one outside averages them all."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
    else:
        yield


def join_world(device_name: str) -> World:
    """The world that the environment describes (WORLD_SIZE, RANK, ... as torchrun sets them), else this process alone.

    Raises:
        UsageError: there is no such device.
        ConfigError: a device that several processes cannot share, or an environment that lacks a variable.
    """
    device = resolve_device(device_name)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(rank=0, size=1, device=device)
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment has WORLD_SIZE, but lacks {', '.join(missing)}",
            where="environment",
            hint="start several processes with --nproc or torchrun",
        )
    if device.type == "cuda":
        device = _own_gpu(device, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ConfigError(
            f"several processes cannot train on {device.type}", where="train.device", hint="use cuda or cpu"
        )
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):  # torchrun sets it as well
        set_collective_interface(None)
    rank = int(os.environ["RANK"])
    store = world_store(_round(), rank=rank, size=size, timeout=COLLECTIVE_TIMEOUT)
    # torchrun's store survives a restart; the prefix hides what earlier processes left in it.
    store = PrefixStore(f"refcli/{_round()}", store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    return World(rank=rank, size=size, device=device)


def _own_gpu(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of this process: the one with its local rank."""
    if device.index is not None:
        raise ConfigError(
            "with several processes, each one uses its own GPU, so do not name one",
            where=f"device {device}",
            hint="use --device cuda; choose GPUs with CUDA_VISIBLE_DEVICES",
        )
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(
            f"more processes than GPUs: this machine has {num_gpus}", where="--nproc", hint=f"use --nproc {num_gpus}"
        )
    return torch.device("cuda", local_rank)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of torch means that another process has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def claim_error_report(exit_code: int, *, timeout: timedelta = STORE_TIMEOUT) -> int | None:
    """Claim the report of the error for all failing processes; the first one to ask gets it.

    Returns:
        None if this process is to report; otherwise the exit code of the one that does, for this process to exit with.
    """
    try:
        store = error_report_store(_round(), timeout=timeout)
        claim = json.dumps([os.environ["RANK"], exit_code])
        winner = store.compare_set(f"refcli/error-report/{_round()}", "", claim).decode()
    except (KeyError, RuntimeError):  # the store is no longer available
        return None
    return None if winner == claim else int(json.loads(winner)[1])


def _round() -> str:
    """Distinguishes these processes from those before a restart, in a store that survives it."""
    return os.environ.get(ROUND_VARIABLE) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
