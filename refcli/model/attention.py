"""Joint self-attention over image and text tokens, with per-modality projections and sub-LayerNorm."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.model.multiway import Multiway, Rows

EXPLICIT_MAX_TOKENS = 320
"""Up to here explicit matmuls beat the fused backward on a CPU; beyond it the score matrix costs more than it saves."""


def scaled_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    is_open: Bool[Tensor, "batch 1 #queries keys"] | None,
    *,
    how: Literal["auto", "sdpa", "explicit"],
) -> Float[Tensor, "batch heads queries head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v over the keys that are open: the same to all queries, or to each its own.

    Every query needs an open key.

    `auto` takes explicit matmuls on a CPU while gradients are recorded and the sequence is short.
    """
    if how == "auto":
        short_on_cpu = query.device.type == "cpu" and torch.is_grad_enabled() and key.shape[2] <= EXPLICIT_MAX_TOKENS
        how = "explicit" if short_on_cpu else "sdpa"
    if how == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=is_open)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_open is not None:
        # Added in place, not masked_fill: no copy of the scores, and nothing to do in the backward pass.
        scores += torch.zeros_like(is_open, dtype=scores.dtype).masked_fill_(~is_open, -torch.inf)
    return torch.softmax(scores, -1, dtype=scores.dtype) @ value


class MultiwayAttention(nn.Module):
    """Multi-head self-attention whose projections and inner LayerNorm are multiway and whose softmax is joint.

    The inner LayerNorm acts on the concatenated heads before the output projection (sub-LN).
    """

    def __init__(
        self, dim: int, heads: int, *, layer_norm_eps: float, how: Literal["auto", "sdpa", "explicit"] = "auto"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.how: Literal["auto", "sdpa", "explicit"] = how
        self.qkv = Multiway.of(lambda: nn.Linear(dim, 3 * dim))
        self.inner_norm = Multiway.of(lambda: nn.LayerNorm(dim, eps=layer_norm_eps))
        self.out = Multiway.of(lambda: nn.Linear(dim, dim))

    def forward(self, rows: Rows, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None) -> Rows:
        """Attend over vision and text tokens together; `key_is_real` is False at padded words."""
        num_vision = rows.vision.shape[1]
        joined = torch.cat(self.qkv(rows), 1)
        batch, tokens, _ = joined.shape
        query, key, value = joined.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_attention(query, key, value, key_is_real, how=self.how)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        attended: Rows = self.out(self.inner_norm(Rows(mixed[:, :num_vision], mixed[:, num_vision:])))
        return attended
