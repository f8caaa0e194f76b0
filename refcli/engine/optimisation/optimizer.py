"""The optimiser: which parameters share a learning rate, a weight decay and an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from refcli.config.schema import OptimSettings
from refcli.engine.objective import HasDepth
from refcli.errors import ConfigError
from refcli.tables import did_you_mean

BASE_LR = "base_lr"
"""Key of a group's learning rate before the schedule's factor."""
TABLE_WORDS = ("token", "position", "embed", "quer")
"""A bare parameter whose name has one of these is a table of vectors (cls/mask tokens, positions, queries)."""
OUTPUT_RATIO = 8
"""A Linear layer with this many times more outputs than inputs predicts a vocabulary."""
MIN_MATRIX_SIDE = 8
"""A Linear layer with fewer outputs predicts numbers (a box, a score)."""


@dataclass(frozen=True)
class ParameterGroup:
    """How one parameter is optimised."""

    lr_scale: float
    decays: bool
    is_hidden_matrix: bool
    """A matrix between hidden layers, the only kind that Muon orthogonalises (Jordan et al. 2024). Others, such as
    embeddings and output layers, fall back to AdamW."""


def group_parameters(objective: nn.Module, settings: OptimSettings) -> dict[str, ParameterGroup]:
    """The group of every trainable parameter, by name. Frozen ones are left out."""
    depth_of = objective.param_depth if isinstance(objective, HasDepth) else lambda name: None
    trainable = [
        (f"{prefix}.{leaf}" if prefix else leaf, module, parameter)
        for prefix, module in objective.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    depths = {name: depth_of(name) for name, _, _ in trainable}
    top = max((depth for depth in depths.values() if depth is not None), default=0)
    groups: dict[str, ParameterGroup] = {}
    for name, module, parameter in trainable:
        depth = depths[name]
        is_table = _is_table(name, module)
        groups[name] = ParameterGroup(
            lr_scale=1.0 if depth is None else settings.tower_lr_scale * settings.layer_decay ** (top - depth),
            decays=settings.decay_norms_and_biases or (parameter.ndim > 1 and not is_table),
            is_hidden_matrix=isinstance(module, nn.Linear) and parameter.ndim == 2 and not _is_output_layer(module),
        )
    return groups


def build_optimizer(objective: nn.Module, settings: OptimSettings) -> Optimizer:
    """The optimiser over `objective`'s trainable parameters, by timm's name for it.

    `adamw` is torch's fused implementation, on the CPU as well.

    Raises:
        ConfigError: no such optimiser, or it does not take one of `optim.options`.
    """
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise ConfigError("every parameter is frozen, so there is nothing to train", where="train.freeze_tower")
    groups = _optimizer_groups(objective, settings)
    options: dict[str, Any] = {
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "betas": settings.betas,
    } | settings.options
    try:
        if settings.name == "adamw":  # timm's is the same, and takes every process two seconds to import
            return AdamW(groups, **{"fused": True, **options})
        return _timm_optimizer(settings.name, groups, options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {settings.name!r} refused its options: {error}", where="optim.options") from error


def _timm_optimizer(name: str, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    if name not in list_optimizers():
        raise ConfigError(
            f"there is no optimiser called {name!r}",
            where="optim.name",
            hint=did_you_mean(name, list_optimizers(), rest="any optimiser of timm is accepted"),
        )
    taken = {key: value for key, value in options.items() if key != "betas" or get_optimizer_info(name).has_betas}
    optimizer = create_optimizer_v2(groups, opt=name, **taken)
    assert isinstance(optimizer, Optimizer)
    return optimizer


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times the factor of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_LR] * factor


def _optimizer_groups(objective: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """torch's parameter groups: one for each distinct `ParameterGroup`, in order of first appearance."""
    parameters: Mapping[str, nn.Parameter] = dict(objective.named_parameters(remove_duplicate=False))
    members: dict[ParameterGroup, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, group in group_parameters(objective, settings).items():
        if id(parameters[name]) not in seen:
            seen.add(id(parameters[name]))
            members.setdefault(group, []).append(parameters[name])
    return [
        {
            "params": tensors,
            "lr": settings.lr * group.lr_scale,
            BASE_LR: settings.lr * group.lr_scale,
            "weight_decay": settings.weight_decay if group.decays else 0.0,
            "use_fallback": not group.is_hidden_matrix,
        }
        for group, tensors in members.items()
    ]


def _is_table(name: str, module: nn.Module) -> bool:
    """Whether a parameter holds one vector per row: an embedding, or a table of positions or tokens."""
    if isinstance(module, nn.Embedding):
        return True
    leaf = name.rpartition(".")[2]
    return leaf not in ("weight", "bias") and any(word in leaf for word in TABLE_WORDS)


def _is_output_layer(linear: nn.Linear) -> bool:
    """Whether a Linear layer maps hidden vectors to a few numbers or to a vocabulary."""
    return linear.out_features < MIN_MATRIX_SIDE or linear.out_features >= OUTPUT_RATIO * linear.in_features
