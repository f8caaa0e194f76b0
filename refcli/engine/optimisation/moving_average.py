"""The exponential moving average of a model in training (EMA)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

WARMUP_POWER = 2 / 3
"""After n steps the decay is 1 - n^-power, until that exceeds the requested one (K. Crowson's warm-up)."""


class MovingAverage:
    """A copy of an objective whose learning parts are moving averages of the objective's.

    Its frozen parts are those of the objective: the same modules or, if both are sharded, equal ones.

    Args:
        objective: parameters and floating-point buffers are averaged, other buffers copied.
        decay: of the average, after the warm-up.
        frozen: parts of the objective that do not learn; they may change in other ways.
        is_shared: share the frozen parts instead of copying them.
    """

    def __init__(
        self, objective: nn.Module, *, decay: float, frozen: Sequence[nn.Module], is_shared: bool = True
    ) -> None:
        self.decay = decay
        self.is_shared = is_shared
        self.frozen_names = names_within(objective, frozen)
        self.module = deepcopy(objective, {id(part): part for part in frozen} if is_shared else {}).eval()

    @torch.no_grad()
    def update(self, objective: nn.Module, step: int) -> None:
        """Update the average after `step` optimiser steps; after the first it equals the objective."""
        weight = 1 - min(1 - step**-WARMUP_POWER, self.decay)
        averages, targets = [], []
        current = objective.state_dict()
        for name, value in self.module.state_dict().items():
            if value.is_floating_point() and name not in self.frozen_names:
                averages.append(value)
                targets.append(current[name])
            else:
                value.copy_(current[name])
        if self.is_shared:
            torch._foreach_lerp_(averages, targets, weight)
            return
        for average, target in zip(averages, targets, strict=True):  # some are sharded and some are not
            average.lerp_(target, weight)


def names_within(module: nn.Module, parts: Sequence[nn.Module]) -> frozenset[str]:
    """The names in a module's state dict that belong to these parts of it."""
    return frozenset(
        f"{path}.{name}"
        for path, inner in module.named_modules(remove_duplicate=False)
        if any(inner is part for part in parts)
        for name in inner.state_dict()
    )
