"""The multiway transformer encoder of BEiT-3: pre-norm blocks with sub-LayerNorm and stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refcli.config.schema import TowerSettings
from refcli.model.attention import MultiwayAttention
from refcli.model.multiway import Multiway, Rows


class FeedForward(nn.Module):
    """fc2(LayerNorm(gelu(fc1 x))): the sub-LN feed-forward network, exact (erf) GELU."""

    def __init__(self, dim: int, hidden_dim: int, *, layer_norm_eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=layer_norm_eps)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Transform every row by itself."""
        out: Tensor = self.fc2(self.norm(F.gelu(self.fc1(x))))
        return out


class MultiwayBlock(nn.Module):
    """x + attention(norm x), then x + ffn(norm x); only the softmax inside attention mixes the modalities."""

    def __init__(self, tower: TowerSettings, *, drop_path: float) -> None:
        super().__init__()
        eps = tower.layer_norm_eps
        self.drop_path = drop_path
        self.attention_norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=eps))
        self.attention = MultiwayAttention(tower.dim, tower.heads, layer_norm_eps=eps, how=tower.attention)
        self.ffn_norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=eps))
        self.ffn = Multiway.of(lambda: FeedForward(tower.dim, tower.ffn_dim, layer_norm_eps=eps))

    def forward(self, rows: Rows, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None) -> Rows:
        """One layer of the tower."""
        rows = self._add(rows, self.attention(self.attention_norm(rows), key_is_real))
        return self._add(rows, self.ffn(self.ffn_norm(rows)))

    def _add(self, rows: Rows, change: Rows) -> Rows:
        """Residual sum; in training a whole sample's change is dropped with probability `drop_path`."""
        if self.training and self.drop_path > 0:
            kept = 1 - self.drop_path
            keep = change.vision.new_empty(len(change.vision), 1, 1).bernoulli_(kept).div_(kept)
            change = Rows(change.vision * keep, change.text * keep)
        return Rows(rows.vision + change.vision, rows.text + change.text)


class MultiwayEncoder(nn.Module):
    """A stack of multiway blocks and a final multiway LayerNorm."""

    def __init__(self, tower: TowerSettings) -> None:
        super().__init__()
        rates = [tower.drop_path * i / max(tower.layers - 1, 1) for i in range(tower.layers)]
        self.blocks = nn.ModuleList(MultiwayBlock(tower, drop_path=rate) for rate in rates)
        self.norm = Multiway.of(lambda: nn.LayerNorm(tower.dim, eps=tower.layer_norm_eps))
        self.checkpoint_activations = tower.checkpoint_activations

    def forward(
        self, rows: Rows, key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None, keep_hidden: tuple[int, ...] = ()
    ) -> tuple[Rows, dict[int, Rows]]:
        """Run every block.

        Args:
            rows: embedded tokens.
            key_is_real: False at padded words; None when nothing is padded.
            keep_hidden: layers whose output (before the final norm) is wanted; 0 is the embedding.

        Returns:
            The rows after the final norm, and the kept hidden rows by layer.
        """
        hidden = {0: rows} if 0 in keep_hidden else {}
        for layer, block in enumerate(self.blocks, start=1):
            if self.checkpoint_activations and torch.is_grad_enabled():
                rows = checkpoint(block, rows, key_is_real, use_reentrant=False)
            else:
                rows = block(rows, key_is_real)
            if layer in keep_hidden:
                hidden[layer] = rows
        return self.norm(rows), hidden
