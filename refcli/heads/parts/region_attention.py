"""The residual layers of a region decoder: attention to itself or to a memory, and an MLP, post-norm or pre-norm."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.model.attention import scaled_attention


class Memory(NamedTuple):
    """What regions look at."""

    keys: Float[Tensor, "batch places dim"]
    values: Float[Tensor, "batch places dim"]
    is_open: Bool[Tensor, "batch 1 regions_or_1 places"] | None
    """False at what a region must not see; every region sees something. None: everything is open."""


class RegionAttention(nn.Module):
    """LN(x + MHA(x + positions, keys, values)), or with pre-norm x + MHA(LN(x) + positions, keys, values).

    Args:
        dim: width of regions and memory.
        heads: of the attention.
        pre_norm: normalise what goes in instead of what comes out.
        how: see `scaled_attention`.
    """

    def __init__(self, dim: int, heads: int, *, pre_norm: bool, how: Literal["auto", "sdpa", "explicit"]) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.how: Literal["auto", "sdpa", "explicit"] = how
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "batch regions dim"],
        memory: Memory | None,
        *,
        positions: Float[Tensor, "regions dim"] | None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Attend to the memory, or (None) to the regions themselves, whose positions then mark the keys as well."""
        regions = self.norm(x) if self.pre_norm else x
        placed = regions if positions is None else regions + positions
        keys, values, is_open = memory or Memory(placed, regions, None)
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
            for tokens, weight, bias in zip((placed, keys, values), weights, biases, strict=True)
        )
        mixed = scaled_attention(query, key, value, is_open, how=self.how)
        summed: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return summed if self.pre_norm else self.norm(summed)


class RegionMLP(nn.Module):
    """LN(x + MLP(x)), or with pre-norm x + MLP(LN(x))."""

    def __init__(self, dim: int, hidden_dim: int, *, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions dim"]:
        """Change every region by itself."""
        summed: Tensor = x + self.mlp(self.norm(x) if self.pre_norm else x)
        return summed if self.pre_norm else self.norm(summed)


def places_inside(
    mask_logits: Float[Tensor, "batch regions mask_rows mask_columns"],
) -> Bool[Tensor, "batch 1 regions places"]:
    """Where each region's mask has a probability of a half or more; everywhere if that is nowhere."""
    inside = (mask_logits >= 0).flatten(2)
    return (inside | ~inside.any(-1, keepdim=True)).unsqueeze(1)
