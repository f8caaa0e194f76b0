"""Shared FPN: the tower's layers fused by self-attention over image tokens and words together (Shared-RIS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.config.schema import AttentionImplementation
from refcli.model.attention import scaled_attention
from refcli.model.multiway import Multiway, Tokens


class ResidualSelfAttention(nn.Module):
    """x + MSA(LN x), with biases and without dropout; tokens do not attend to padded ones."""

    def __init__(self, dim: int, heads: int, *, attention_implementation: AttentionImplementation) -> None:
        super().__init__()
        self.heads = heads
        self.attention_implementation: AttentionImplementation = attention_implementation
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Every token attends to all tokens that are not padding."""
        batch, tokens, dim = x.shape
        projected = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_attention(query, key, value, key_is_real, attention_implementation=self.attention_implementation)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + attended


class TokenProjection(nn.Module):
    """One linear layer for all tokens, or (multiway) one for image tokens and one for words; concatenates both."""

    def __init__(self, in_dim: int, dim: int, *, multiway: bool) -> None:
        super().__init__()
        self.is_multiway = multiway
        self.linear = Multiway.of(lambda: nn.Linear(in_dim, dim)) if multiway else nn.Linear(in_dim, dim)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """Image tokens first, then the words."""
        projected: Tensor = torch.cat(self.linear(tokens), 1) if self.is_multiway else self.linear(torch.cat(tokens, 1))
        return projected


class SharedFPN(nn.Module):
    """z = [z_1 .. z_K] W_f with z_j = MSA(LN g_j) + g_j and g_j = h_j W_j (Shared-RIS, section on the Shared FPN).

    Args:
        in_dim: width of the tower.
        dim: width of the fused tokens (d_w).
        num_stages: K, the layers of the tower that are fused.
        heads: of the attention.
        multiway: a W_j each for image tokens and words.
        attention_implementation: see `scaled_attention`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        num_stages: int,
        heads: int,
        multiway: bool,
        attention_implementation: AttentionImplementation,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(TokenProjection(in_dim, dim, multiway=multiway) for _ in range(num_stages))
        self.attentions = nn.ModuleList(
            ResidualSelfAttention(dim, heads, attention_implementation=attention_implementation)
            for _ in range(num_stages)
        )
        self.merge = nn.Linear(num_stages * dim, dim)

    def forward(
        self, stages: Sequence[Tokens], key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Fuse the tokens of the stages; `key_is_real` is False at padded words."""
        fused = [
            attention(projection(tokens), key_is_real)
            for tokens, projection, attention in zip(stages, self.projections, self.attentions, strict=True)
        ]
        merged: Tensor = self.merge(torch.cat(fused, -1))
        return merged
