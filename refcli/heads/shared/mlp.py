"""The small read-out network of DETR."""

from __future__ import annotations

from torch import nn


class ThreeLayerMLP(nn.Sequential):
    """Three linear layers with ReLU between: DETR's box regressor, with any number of outputs."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, num_outputs))
