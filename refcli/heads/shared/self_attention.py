"""Plain pre-norm self-attention, for heads that no longer tell image tokens from words."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.model.attention import scaled_attention


class ResidualSelfAttention(nn.Module):
    """x + MSA(LN x), with biases and without dropout; padded tokens are no keys."""

    def __init__(self, dim: int, heads: int, *, how: Literal["auto", "sdpa", "explicit"]) -> None:
        super().__init__()
        self.heads = heads
        self.how: Literal["auto", "sdpa", "explicit"] = how
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Let every token see all tokens that are real."""
        batch, tokens, dim = x.shape
        projected = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_attention(query, key, value, key_is_real, how=self.how)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + attended
