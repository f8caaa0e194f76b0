"""The centre map: where the centres of referred objects are, and the seeds of the queries at its local maxima."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

WINDOW = 3
"""Side, in patches, of the window in which a seed is the maximum (CenterNet, Zhou et al. 2019)."""


class Seeds(NamedTuple):
    """One seed per query, the largest first."""

    patches: Int[Tensor, "batch queries"]
    """Index of the patch, row-major over the grid."""
    logits: Float[Tensor, "batch queries"]
    """Of the centre map."""
    are_alive: Bool[Tensor, "batch queries"]
    """False where the map has fewer local maxima than there are queries; such a query answers nothing."""
    points: Float[Tensor, "batch queries 2"]
    """(x, y) of the patch's centre, in fractions of the model frame."""


def find_seeds(centre_logits: Float[Tensor, "batch rows columns"], num_queries: int) -> Seeds:
    """The largest local maxima of a centre map.

    A patch is a maximum if it is the largest of the 3 x 3 patches around it; of several equal ones the first is. Two
    objects therefore never have neighbouring seeds, and one object rarely has two (no suppression is needed later).

    Args:
        centre_logits: fp32, so that rounding makes no ties.
        num_queries: maxima to return; fewer where the map has fewer patches.
    """
    rows, columns = centre_logits.shape[1:]
    _, largest = F.max_pool2d(centre_logits[:, None], WINDOW, 1, WINDOW // 2, return_indices=True)
    own = torch.arange(rows * columns, device=centre_logits.device)
    flat = centre_logits.flatten(1)
    is_maximum = largest.flatten(1) == own
    ranked = torch.where(is_maximum, flat, flat.detach().new_tensor(-torch.inf))
    patches = ranked.topk(min(num_queries, rows * columns), dim=-1).indices
    are_alive = is_maximum.gather(1, patches)
    patches = torch.where(are_alive, patches, 0)
    points = torch.stack(((patches % columns + 0.5) / columns, (patches // columns + 0.5) / rows), -1)
    return Seeds(patches, flat.gather(1, patches), are_alive, points.to(flat.dtype))
