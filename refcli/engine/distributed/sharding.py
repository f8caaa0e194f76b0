"""FSDP2: every process keeps its part of every parameter; checkpoints are whole nevertheless."""

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

_BLUEPRINTS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Every sharded module as it was before, its parameters on the meta device."""
STEP = "step"
"""The only entry of an optimiser's state that is one number however many the parameter has."""


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a module in place over all processes: each block of the tower by itself, what remains together.

    The values must be the same in every process. Afterwards only `module(...)` itself may be called; its parameters
    are other objects, and single numbers among them have become vectors of one.

    Args:
        device: where the module is.
    """
    on_meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    _BLUEPRINTS[module] = deepcopy(module, dict(on_meta))
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
    """The module with all its parameters, to validate or export; every process must ask for it.

    Returns:
        `module` itself if it is not sharded. Otherwise a copy on the same device in the main process, and a shell
        without values in the others.
    """
    blueprint = _BLUEPRINTS.get(module)
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
    """The state dict of a plain, DDP-wrapped or sharded module, named and shaped as that of a plain one.

    Every process must call it. Of a sharded module only the main process gets it (on the CPU), the others get {}.
    """
    module = _unwrapped(module)
    state: dict[str, Tensor] = module.state_dict()
    blueprint = _BLUEPRINTS.get(module)
    if blueprint is None:
        return state
    shapes = {name: value.shape for name, value in blueprint.state_dict().items()}
    return _on_main({name: _gathered(value, shapes[name]) for name, value in state.items()})


def load_full_model_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the state dict of a plain module into a plain, DDP-wrapped or sharded one; every process has it whole.

    Raises:
        RuntimeError: names or shapes do not fit, in torch's words.
    """
    module = _unwrapped(module)
    own = module.state_dict()
    module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state dict of an optimiser over `module`'s parameters, as if the module were plain.

    Every process must call it. Of a sharded module only the main process gets it (on the CPU), the others get {}.
    """
    module = _unwrapped(module)
    state = optimizer.state_dict()
    blueprint = _BLUEPRINTS.get(module)
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
    """Put in what `full_optimizer_state` gave, whatever the parallelism was then; every process has it whole.

    Raises:
        ValueError: the parameter groups do not fit, in torch's words.
    """
    if _unwrapped(module) not in _BLUEPRINTS:
        optimizer.load_state_dict(dict(state))
        return
    parameters = _parameters(optimizer)
    entries = {
        number: {key: value if key == STEP else _part(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
        if number < len(parameters)
    }
    optimizer.load_state_dict({**state, "state": entries})


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, in the order of the numbers that a state dict gives them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gathered(value: Any, shape: torch.Size) -> Any:  # noqa: ANN401 - an optimiser keeps what it likes
    """A sharded tensor made whole on the main process's CPU, in the shape it had before; anything else as it is."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    if dist.get_rank():
        return None
    return (full if shape or full.numel() > 1 else full.reshape(())).to("cpu", copy=True)


def _on_main(state: dict[str, Any]) -> dict[str, Any]:
    return {} if dist.get_rank() else state


def _part(value: Any, like: Tensor | None) -> Any:  # noqa: ANN401 - an optimiser keeps what it likes
    """This process's part of a whole tensor, if what it is for is sharded; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor):
        return value
    value = value.reshape(1) if value.ndim == 0 else value
    if value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
