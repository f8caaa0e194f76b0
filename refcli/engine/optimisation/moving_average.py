"""The moving average of a model that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

WARMUP_POWER = 2 / 3
"""After n steps the decay is 1 - n^-power until that exceeds the one that was asked for (K. Crowson's warm-up)."""


class MovingAverage:
    """A copy of an objective, of which everything that learns follows the objective as a moving average.

    Its frozen parts are those of the objective: the same modules, or, where the two are to be sharded, equal ones.

    Args:
        objective: parameters and floating-point buffers are averaged, other buffers copied.
        decay: of the average, once there are steps enough.
        frozen: parts of the objective that do not learn; they may change by other means.
        is_shared: whether to have the frozen parts in common instead of copying them.
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
        """Follow the objective, of which `step` optimiser steps are done; after the first the two are equal."""
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
    """The names in a module's state dict that belong to some of its parts."""
    return frozenset(
        f"{path}.{name}"
        for path, inner in module.named_modules(remove_duplicate=False)
        if any(inner is part for part in parts)
        for name in inner.state_dict()
    )
