"""Joint self-attention over image and text tokens, with per-modality projections and sub-LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.config.schema import AttentionImplementation
from refcli.model.multiway import Multiway, Tokens

EXPLICIT_MAX_TOKENS = 320
"""Up to this length explicit matmuls beat the fused backward on a CPU; beyond, the score matrix costs too much."""


def scaled_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    is_open: Bool[Tensor, "batch 1 #queries keys"] | None,
    *,
    attention_implementation: AttentionImplementation,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v over the open keys.

    Args:
        is_open: False at keys that a query must not attend to, for all queries alike or for each; every query needs an
            open key. None: all keys are open.
        attention_implementation: `sdpa` is torch's own, `explicit` plain matmuls; `auto` takes matmuls on a CPU while
            gradients are recorded and the sequence is short.
    """
    if attention_implementation == "auto":
        short_on_cpu = query.device.type == "cpu" and torch.is_grad_enabled() and key.shape[2] <= EXPLICIT_MAX_TOKENS
        attention_implementation = "explicit" if short_on_cpu else "sdpa"
    if attention_implementation == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=is_open)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_open is not None:
        # Added in place instead of masked_fill: no copy of the scores, no work in the backward pass.
        scores += torch.zeros_like(is_open, dtype=scores.dtype).masked_fill_(~is_open, -torch.inf)
    return torch.softmax(scores, -1, dtype=scores.dtype) @ value


class MultiwayAttention(nn.Module):
    """Multi-head self-attention whose projections and inner LayerNorm are multiway and whose softmax is joint.

    The inner LayerNorm acts on the concatenated heads before the output projection (sub-LN).
    """

    def __init__(
        self, dim: int, heads: int, *, layer_norm_eps: float, attention_implementation: AttentionImplementation = "auto"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_implementation: AttentionImplementation = attention_implementation
        self.qkv = Multiway.of(lambda: nn.Linear(dim, 3 * dim))
        self.inner_norm = Multiway.of(lambda: nn.LayerNorm(dim, eps=layer_norm_eps))
        self.out = Multiway.of(lambda: nn.Linear(dim, dim))

    def forward(self, tokens: Tokens, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None) -> Tokens:
        """Attend over vision and text tokens together; `key_is_real` is False at padded words."""
        num_vision = tokens.vision.shape[1]
        joined = torch.cat(self.qkv(tokens), 1)
        batch, length, _ = joined.shape
        query, key, value = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_attention(query, key, value, key_is_real, attention_implementation=self.attention_implementation)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        attended: Tokens = self.out(self.inner_norm(Tokens(mixed[:, :num_vision], mixed[:, num_vision:])))
        return attended
