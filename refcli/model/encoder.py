"""The multiway transformer encoder of BEiT-3: pre-norm blocks with sub-LayerNorm and stochastic depth."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refcli.config.schema import TowerSettings
from refcli.model.attention import MultiwayAttention
from refcli.model.multiway import Multiway, Tokens


class FeedForward(nn.Module):
    """fc2(LayerNorm(gelu(fc1 x))): the sub-LN feed-forward network, exact (erf) GELU."""

    def __init__(self, dim: int, hidden_dim: int, *, layer_norm_eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=layer_norm_eps)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Transform every token by itself."""
        out: Tensor = self.fc2(self.norm(F.gelu(self.fc1(x))))
        return out


class KeptSamples(NamedTuple):
    """Stochastic depth of one block: 1 / (1 - rate) for samples that keep a residual branch, 0 for the others."""

    attention: Float[Tensor, "batch 1 1"]
    ffn: Float[Tensor, "batch 1 1"]


class MultiwayBlock(nn.Module):
    """x + attention(norm x), then x + ffn(norm x); only the softmax inside attention mixes the modalities.

    Stochastic depth is drawn outside, so that all blocks of a tower compile to one program.
    """

    def __init__(self, tower: TowerSettings) -> None:
        super().__init__()
        eps = tower.layer_norm_eps
        self.attention_norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=eps))
        self.attention = MultiwayAttention(
            tower.dim, tower.heads, layer_norm_eps=eps, attention_implementation=tower.attention
        )
        self.ffn_norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=eps))
        self.ffn = Multiway.of(lambda: FeedForward(tower.dim, tower.ffn_dim, layer_norm_eps=eps))

    def forward(
        self, tokens: Tokens, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None, kept: KeptSamples | None = None
    ) -> Tokens:
        """One layer of the tower; with `kept=None` nothing is dropped."""
        tokens = _add(tokens, self.attention(self.attention_norm(tokens), key_is_real), kept and kept.attention)
        return _add(tokens, self.ffn(self.ffn_norm(tokens)), kept and kept.ffn)


def _add(tokens: Tokens, change: Tokens, kept: Float[Tensor, "batch 1 1"] | None) -> Tokens:
    """The residual sum, without the change of dropped samples."""
    if kept is not None:
        kept = kept.to(change.vision.dtype)
        change = Tokens(change.vision * kept, change.text * kept)
    return Tokens(tokens.vision + change.vision, tokens.text + change.text)


def draw_kept(rate: float, like: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 1 1"]:
    """For each sample of a batch: 0 with probability `rate`, else 1 / (1 - rate)."""
    share = 1 - rate
    dtype = torch.promote_types(like.dtype, torch.float32)  # rounded only once, to the type of the product
    return like.new_empty(like.shape[0], 1, 1, dtype=dtype).bernoulli_(share).div_(share)


class MultiwayEncoder(nn.Module):
    """A stack of multiway blocks and a final multiway LayerNorm."""

    def __init__(self, tower: TowerSettings) -> None:
        super().__init__()
        self.drop_rates = tuple(tower.drop_path * i / max(tower.layers - 1, 1) for i in range(tower.layers))
        """Of each block, in training."""
        self.blocks = nn.ModuleList(MultiwayBlock(tower) for _ in range(tower.layers))
        self.norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=tower.layer_norm_eps))
        self.checkpoint_activations = tower.checkpoint_activations

    def forward(
        self, tokens: Tokens, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None, keep_hidden: tuple[int, ...] = ()
    ) -> tuple[Tokens, dict[int, Tokens]]:
        """Run every block.

        Args:
            tokens: embedded.
            key_is_real: False at padded words; None without padding.
            keep_hidden: layers whose output before the final norm is returned; 0 is the embedding.

        Returns:
            The tokens after the final norm, and the hidden ones by layer.
        """
        hidden = {0: tokens} if 0 in keep_hidden else {}
        for layer, (block, rate) in enumerate(zip(self.blocks, self.drop_rates, strict=True), start=1):
            drops = self.training and rate > 0
            kept = KeptSamples(draw_kept(rate, tokens.vision), draw_kept(rate, tokens.vision)) if drops else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, key_is_real, kept, use_reentrant=False)
            else:
                tokens = block(tokens, key_is_real, kept)
            if layer in keep_hidden:
                hidden[layer] = tokens
        return self.norm(tokens), hidden
