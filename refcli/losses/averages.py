"""Means over the samples that count, in a world of processes as in a single one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor


def mean_over(values: Float[Tensor, " samples"], counts: Bool[Tensor, " samples"]) -> Float[Tensor, ""]:
    """Mean of the values that count, whatever the others are (even NaN); 0 if none counts.

    In a group of N processes the divisor is the number that counts in all of them, divided by N (DETR's
    normalisation, Carion et al. 2020). The mean of the results over the processes, and so the averaged gradient, is
    then the mean over everything that counts anywhere, however unevenly it is spread. Processes communicate only while
    gradients are recorded, and then every process must call this equally often.
    """
    return torch.where(counts, values, 0).sum() / _divisor(counts)


def sum_per(values: Float[Tensor, " samples"], counts: Bool[Tensor, "*items"]) -> Float[Tensor, ""]:
    """Sum of the values, divided by the number of items that count (at least one), in a group as in `mean_over`."""
    return values.sum() / _divisor(counts)


def _divisor(counts: Bool[Tensor, "*items"]) -> Float[Tensor, ""]:
    """The number that count in the whole group (at least one), per process."""
    number = counts.sum()
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()):
        return number.clamp(min=1).float()
    dist.all_reduce(number)
    return number.clamp(min=1) / dist.get_world_size()
