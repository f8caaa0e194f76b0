"""Embeddings of patches and words."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.schema import TowerSettings
from refcli.model.positions import NUM_EXTRA_ROWS, NUM_UNUSED_ROWS, resample_vision_positions


class VisionEmbedding(nn.Module):
    """Patch projection, class token, mask token and vision positions."""

    def __init__(self, tower: TowerSettings) -> None:
        super().__init__()
        rows, columns = tower.grid
        self.grid = tower.grid
        self.projection = nn.Conv2d(3, tower.dim, tower.patch_size, stride=tower.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, tower.dim))
        self.positions = nn.Parameter(torch.empty(NUM_EXTRA_ROWS + rows * columns, tower.dim))

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        patch_is_masked: Bool[Tensor, "batch patches"] | None = None,
    ) -> tuple[Float[Tensor, "batch vision_tokens dim"], tuple[int, int]]:
        """Embed images of any size that is a multiple of the patch.

        Masked patches are replaced by the mask token before positions are added. For another grid than the table's,
        positions are resampled.

        Returns:
            [class token, patches row-major] with positions, and the grid (rows, columns).
        """
        patches = self.projection(images)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        if patch_is_masked is not None:
            tokens = torch.where(patch_is_masked.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], 1)
        table = resample_vision_positions(self.positions, old_grid=self.grid, new_grid=grid)
        return tokens + table[NUM_UNUSED_ROWS:].to(tokens.dtype), grid


class TextEmbedding(nn.Module):
    """Word-piece table and text positions; embeddings of padding are zero."""

    def __init__(self, tower: TowerSettings) -> None:
        super().__init__()
        self.words = nn.Embedding(tower.vocabulary_size, tower.dim)
        self.positions = nn.Parameter(torch.empty(tower.max_text_positions, tower.dim))

    def forward(
        self, token_ids: Int[Tensor, "batch words"], token_is_pad: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words dim"]:
        """Embed token ids; positions start at row 2 of their own table, independent of the image."""
        positions = self.positions[NUM_UNUSED_ROWS : NUM_UNUSED_ROWS + token_ids.shape[1]]
        embedded: Tensor = self.words(token_ids) + positions
        return embedded.masked_fill(token_is_pad.unsqueeze(-1), 0.0)
