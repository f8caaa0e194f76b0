"""FSDP2: every process keeps its shard of every parameter; checkpoints hold full tensors nevertheless.

Checkpoints have the same content with and without sharding. `torch.distributed.checkpoint.state_dict` does not ensure
that: it keys the state of an optimiser by parameter name instead of number, refuses parameters without state,
lets missing names of a model pass, and on a CPU returns views of the live tensors (torch 2.14).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from refcli.model.encoder import MultiwayBlock

_UNSHARDED: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Every sharded module as it was before, its parameters on the meta device."""
STEP = "step"
"""The only entry of an optimiser's state that is a single number for a parameter of any size."""


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a module in place over all processes: each block of the tower separately, the rest together.

    The values must be the same in every process. Afterwards only `module(...)` itself may be called; its parameters
    are other objects, and scalar parameters have become vectors of length 1.

    Args:
        device: where the module is.
    """
    on_meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    _UNSHARDED[module] = deepcopy(module, dict(on_meta))
    for part in list(module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.ndim == 0:  # FSDP2 refuses them
                setattr(part, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in list(module.modules()):
        if isinstance(part, MultiwayBlock):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def unsharded(module: nn.Module) -> nn.Module:
    """The module with full parameters, to validate or export; every process must call it.

    Returns:
        `module` itself if it is not sharded. Otherwise a copy on the same device in the main process, and a module
        without values in the others.
    """
    blueprint = _UNSHARDED.get(module)
    if blueprint is None:
        return module
    device = next(module.parameters()).device
    state = full_model_state(module)
    copy = deepcopy(blueprint).train(module.training)
    if state:
        copy.load_state_dict(state, assign=True)
        copy.to(device)
    return copy


def full_model_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain, DDP-wrapped or sharded module, with the names and shapes of the plain one.

    Every process must call it. If the module is sharded, only the main process gets it (on the CPU); the others get {}.
    """
    module = _unwrapped(module)
    state: dict[str, Tensor] = module.state_dict()
    blueprint = _UNSHARDED.get(module)
    if blueprint is None:
        return state
    shapes = {name: value.shape for name, value in blueprint.state_dict().items()}
    return _on_main({name: _gathered(value, shapes[name]) for name, value in state.items()})


def load_full_model_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state dict of a plain module into a plain, DDP-wrapped or sharded one; every process has all of it.

    Raises:
        RuntimeError: names or shapes do not fit (torch's own error).
    """
    module = _unwrapped(module)
    own = module.state_dict()
    module.load_state_dict({name: _shard_of(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state dict of an optimiser over `module`'s parameters, as if the module were plain.

    Every process must call it. If the module is sharded, only the main process gets it (on the CPU); the others get {}.
    """
    module = _unwrapped(module)
    state = optimizer.state_dict()
    blueprint = _UNSHARDED.get(module)
    if blueprint is None:
        return state
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    shapes = [blueprint.get_parameter(names[id(parameter)]).shape for parameter in _parameters(optimizer)]
    entries = {
        number: {key: _gathered(value, shapes[number]) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    return _on_main({**state, "state": entries})


def load_full_optimizer_state(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `full_optimizer_state` returned under any parallelism; every process has all of it.

    Raises:
        ValueError: the parameter groups do not fit (torch's own error).
    """
    if _unwrapped(module) not in _UNSHARDED:
        optimizer.load_state_dict(dict(state))
        return
    parameters = _parameters(optimizer)
    entries = {
        number: {key: value if key == STEP else _shard_of(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
        if number < len(parameters)
    }
    optimizer.load_state_dict({**state, "state": entries})


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, in the order in which a state dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gathered(value: Any, shape: torch.Size) -> Any:  # noqa: ANN401 - optimiser state may hold anything
    """A sharded tensor as a full one on the main process's CPU, in its original shape; anything else unchanged."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    if dist.get_rank():
        return None
    return (full if shape or full.numel() > 1 else full.reshape(())).to("cpu", copy=True)


def _on_main(state: dict[str, Any]) -> dict[str, Any]:
    return {} if dist.get_rank() else state


def _shard_of(value: Any, like: Tensor | None) -> Any:  # noqa: ANN401 - optimiser state may hold anything
    """This process's shard of a full tensor, if `like` is sharded; anything else unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor):
        return value
    value = value.reshape(1) if value.ndim == 0 else value
    if value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
