"""Shared Mask Decoder: transformer layers over image tokens and words, then a mask as a product (Shared-RIS)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.config.schema import AttentionImplementation
from refcli.heads.shared.layers import NUM_DOUBLINGS, BilinearUpsampler
from refcli.heads.shared_ris.fpn import ResidualSelfAttention

MLP_RATIO = 4


class DecoderLayer(nn.Module):
    """u' = MSA(LN z) + z, u = MLP(LN u') + u'; image tokens and words share everything, the MLP too."""

    def __init__(self, dim: int, heads: int, *, attention_implementation: AttentionImplementation) -> None:
        super().__init__()
        self.attention = ResidualSelfAttention(dim, heads, attention_implementation=attention_implementation)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim)
        )

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """One layer of the decoder."""
        mixed: Tensor = self.attention(tokens, key_is_real)
        changed: Tensor = self.mlp(mixed)
        return mixed + changed


class SharedMaskDecoder(nn.Module):
    """Mask logit of a place = <its upsampled vector, MLP(vector of <s>)> (Shared-RIS, section on the decoder).

    The paper specifies neither the query's MLP nor a 1x1 convolution after the upsampling; two linear layers with ReLU
    and that convolution fit its tables of parameters and operations.
    """

    def __init__(
        self, dim: int, *, num_layers: int, heads: int, attention_implementation: AttentionImplementation
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, attention_implementation=attention_implementation) for _ in range(num_layers)
        )
        self.upsampler = BilinearUpsampler(dim, doublings=NUM_DOUBLINGS)
        self.query = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        grid: tuple[int, int],
        key_is_real: Bool[Tensor, "batch 1 1 tokens"] | None,
    ) -> Float[Tensor, "batch mask_rows mask_columns"]:
        """Mask logits at four times the grid.

        Args:
            tokens: class token of the image, patches row-major, then the words with <s> first.
            grid: (rows, columns) of patches.
            key_is_real: False at padded words; None without padding.
        """
        for layer in self.layers:
            tokens = layer(tokens, key_is_real)
        num_vision = 1 + grid[0] * grid[1]
        patches = tokens[:, 1:num_vision].reshape(tokens.shape[0], *grid, -1)
        maps = self.upsampler(patches.permute(0, 3, 1, 2))
        return torch.einsum("bdhw,bd->bhw", maps, self.query(tokens[:, num_vision]).to(maps.dtype))
