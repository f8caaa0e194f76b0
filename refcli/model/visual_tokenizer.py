"""VQ-KD, the visual tokenizer of BEiT v2: every patch of an image becomes one id of a fixed codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.model.attention import scaled_attention

MAX_BYTE = 255.0
GRID_MARGIN = 0.1
"""Added to the sides of the new grid when positions are resampled (DINO's guard against rounding down). The official
ids depend on it."""


def signed_pixels(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Pixels in -1..1 (float32), from pixels in 0..1 or in 0..255.

    They are read as 0..1 if none in the whole batch is above 1 (the official rule).
    """
    pixels = images.float()
    return pixels * torch.where(pixels.amax() <= 1, MAX_BYTE, 1.0) / (MAX_BYTE / 2) - 1


def resample_tokenizer_positions(
    table: Float[Tensor, "1 rows dim"], *, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 new_rows dim"]:
    """Resample the patch rows of the tokenizer's position table to another grid.

    The class row stays; the others, row-major over the grid, are interpolated bicubically in float32 by the scale
    factor (new + 0.1) / old. This samples other points than interpolation by target size, which the tower uses.
    """
    if old_grid == new_grid:
        return table
    image = table[:, 1:].float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    scale = [(new + GRID_MARGIN) / old for new, old in zip(new_grid, old_grid, strict=True)]
    image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], 1)


def nearest_codes(
    vectors: Float[Tensor, "*batch code_dim"], codes: Float[Tensor, "codes code_dim"]
) -> Int[Tensor, " *batch"]:
    """The row of `codes` with the least Euclidean distance to each vector."""
    # |v|^2 is the same for every code, so the least |v - c|^2 is the greatest v.c - |c|^2 / 2.
    return F.linear(vectors, codes, -0.5 * codes.square().sum(-1)).argmax(-1)


class TokenizerEmbedding(nn.Module):
    """Patch projection, class token and positions."""

    def __init__(self, settings: VisualTokenizerSettings) -> None:
        super().__init__()
        rows, columns = self.grid = settings.grid
        self.patch_size = settings.patch_size
        self.projection = nn.Conv2d(3, settings.dim, settings.patch_size, stride=settings.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + rows * columns, settings.dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch vision_tokens dim"]:
        """[class token, patches row-major] with positions.

        Raises:
            ValueError: a side of the image is not a multiple of the patch.
        """
        if any(side % self.patch_size for side in pixels.shape[2:]):
            raise ValueError(f"image sides {tuple(pixels.shape[2:])} are not multiples of the patch {self.patch_size}")
        patches: Tensor = self.projection(pixels)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        return tokens + resample_tokenizer_positions(self.positions, old_grid=self.grid, new_grid=grid)


class TokenizerAttention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Every token attends to every token."""
        batch, tokens, _ = x.shape
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        joined = F.linear(x, self.qkv.weight, bias)
        query, key, value = joined.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_attention(query, key, value, None, attention_implementation="sdpa")
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class TokenizerBlock(nn.Module):
    """x + attention(norm x), then x + ffn(norm x), exact (erf) GELU: a plain pre-norm ViT block."""

    def __init__(self, settings: VisualTokenizerSettings) -> None:
        super().__init__()
        dim, eps = settings.dim, settings.layer_norm_eps
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.attention = TokenizerAttention(dim, settings.heads)
        self.ffn_norm = nn.LayerNorm(dim, eps=eps)
        self.ffn = nn.Sequential(nn.Linear(dim, settings.ffn_dim), nn.GELU(), nn.Linear(settings.ffn_dim, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """One layer of the encoder."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class VisualTokenizer(nn.Module):
    """The encoder half of VQ-KD and its codebook (Peng et al. 2022, BEiT v2, section 2.2).

    It gives the targets of masked image modelling. This class is not trained: it has no decoder, no teacher and no
    moving averages of the codebook.
    """

    codebook: Float[Tensor, "codes code_dim"]

    def __init__(self, settings: VisualTokenizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = TokenizerEmbedding(settings)
        self.blocks = nn.ModuleList(TokenizerBlock(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim, eps=settings.layer_norm_eps)
        self.code_projection = nn.Sequential(
            nn.Linear(settings.dim, settings.dim), nn.Tanh(), nn.Linear(settings.dim, settings.code_dim)
        )
        self.register_buffer("codebook", F.normalize(torch.randn(settings.num_codes, settings.code_dim), dim=-1))

    def patch_features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """The encoder's normalised output at the patches, row-major; the class token takes part in attention only.

        Args:
            images: RGB in 0..1 or 0..255, not normalised, padding black (0); the sides are multiples of the patch.
        """
        tokens: Tensor = self.embedding(signed_pixels(images).to(self.codebook.dtype))
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = self.norm(tokens[:, 1:])
        return features

    def code_vectors(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches code_dim"]:
        """Patch features projected to the codebook's space, of any length; `images` as in `patch_features`."""
        vectors: Tensor = self.code_projection(self.patch_features(images))
        return vectors

    @torch.no_grad()
    def code_ids(self, images: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """The id, in 0..num_codes - 1, of the code nearest to every patch's unit vector, row-major.

        Computed in the precision of the weights, also inside autocast, since bfloat16 would change ids. `images` as in
        `patch_features`.
        """
        with torch.autocast(images.device.type, enabled=False):
            vectors = F.normalize(self.code_vectors(images).float(), dim=-1)
            return nearest_codes(vectors, self.codebook.float())
