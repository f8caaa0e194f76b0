"""Shared FPN: the tower's layers fused by self-attention over image tokens and words together (Shared-RIS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.heads.shared.self_attention import ResidualSelfAttention
from refcli.model.multiway import Multiway, Rows


class RowProjection(nn.Module):
    """One linear layer for all tokens, or (multiway) one for image tokens and one for words; joins the two."""

    def __init__(self, in_dim: int, dim: int, *, multiway: bool) -> None:
        super().__init__()
        self.is_multiway = multiway
        self.linear = Multiway.of(lambda: nn.Linear(in_dim, dim)) if multiway else nn.Linear(in_dim, dim)

    def forward(self, rows: Rows) -> Float[Tensor, "batch tokens dim"]:
        """Image tokens first, then the words."""
        projected: Tensor = torch.cat(self.linear(rows), 1) if self.is_multiway else self.linear(torch.cat(rows, 1))
        return projected


class SharedFPN(nn.Module):
    """z = [z_1 .. z_K] W_f with z_j = MSA(LN g_j) + g_j and g_j = h_j W_j (Shared-RIS, section on the Shared FPN).

    Args:
        in_dim: width of the tower.
        dim: width of the fused tokens (d_w).
        num_stages: K, the layers of the tower that are fused.
        heads: of the attention.
        multiway: give image tokens and words a W_j each.
        how: see `scaled_attention`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        num_stages: int,
        heads: int,
        multiway: bool,
        how: Literal["auto", "sdpa", "explicit"],
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(RowProjection(in_dim, dim, multiway=multiway) for _ in range(num_stages))
        self.attentions = nn.ModuleList(ResidualSelfAttention(dim, heads, how=how) for _ in range(num_stages))
        self.merge = nn.Linear(num_stages * dim, dim)

    def forward(
        self, stages: Sequence[Rows], key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Fuse the rows of the stages; `key_is_real` is False at padded words."""
        fused = [
            attention(projection(rows), key_is_real)
            for rows, projection, attention in zip(stages, self.projections, self.attentions, strict=True)
        ]
        merged: Tensor = self.merge(torch.cat(fused, -1))
        return merged
