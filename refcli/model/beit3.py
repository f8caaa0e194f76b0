"""OneTower: the BEiT-3 multiway transformer below every head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.schema import TowerSettings
from refcli.model.embeddings import TextEmbedding, VisionEmbedding
from refcli.model.encoder import MultiwayEncoder
from refcli.model.multiway import Tokens
from refcli.model.positions import NUM_EXTRA_ROWS, sine_positions_2d

BEIT3_INIT_STD = 0.02
"""Standard deviation of fresh linear weights; cut at plus and minus one deviation (the published wrapper)."""


@dataclass(frozen=True)
class Features:
    """The tower's output for a batch of (image, expression) pairs, after the final LayerNorm."""

    vision: Float[Tensor, "batch vision_tokens dim"]
    """Class token first, then the patches row-major."""
    text: Float[Tensor, "batch words dim"]
    """Word pieces; number 0 is <s>, which stands for the whole expression."""
    token_is_pad: Bool[Tensor, "batch words"]
    grid: tuple[int, int]
    """(rows, columns) of patches."""
    image_size: tuple[int, int]
    """(height, width) of the model frame in pixels."""
    hidden: dict[int, Tokens] = field(default_factory=dict)
    """Tokens before the final norm by layer, for the requested layers."""

    @property
    def patches(self) -> Float[Tensor, "batch patches dim"]:
        """The vision tokens without the class token."""
        return self.vision[:, 1:]


@torch.no_grad()
def draw_as_published(linear: nn.Linear) -> None:
    """Fresh weights as BEiT-3's wrapper draws them: a normal distribution cut at one deviation, no bias."""
    nn.init.trunc_normal_(linear.weight, std=BEIT3_INIT_STD, a=-BEIT3_INIT_STD, b=BEIT3_INIT_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class OneTower(nn.Module):
    """BEiT-3: one transformer over [class token, patches] and words (Wang et al. 2023; OneRef section 3.1)."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.vision_embedding = VisionEmbedding(settings)
        self.text_embedding = TextEmbedding(settings)
        self.encoder = MultiwayEncoder(settings)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights by `settings.init`; on the meta device nothing is drawn."""
        if self.vision_embedding.positions.is_meta:
            return
        scaled = self.settings.init == "scaled"
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear) and scaled:
                std = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                draw_as_published(module)
        vision, text = self.vision_embedding, self.text_embedding
        if scaled:
            nn.init.normal_(vision.positions, std=0.02)
            vision.positions[NUM_EXTRA_ROWS:] = sine_positions_2d(self.settings.grid, self.settings.dim)
            nn.init.normal_(text.positions, std=0.5)
            nn.init.normal_(text.words.weight, std=1.0)
        else:
            nn.init.normal_(vision.positions)
            nn.init.normal_(text.positions)
            nn.init.normal_(text.words.weight, std=self.settings.dim**-0.5)

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        token_ids: Int[Tensor, "batch words"],
        token_is_pad: Bool[Tensor, "batch words"],
        *,
        patch_is_masked: Bool[Tensor, "batch patches"] | None = None,
        keep_hidden: tuple[int, ...] = (),
    ) -> Features:
        """Encode images and expressions together.

        Args:
            images: normalised, in the model frame; the sides are multiples of the patch size.
            token_ids: word pieces with <s> first; trim them to the batch's longest expression.
            token_is_pad: True at padding, to which no token attends.
            patch_is_masked: patches replaced by the mask token (MRefM pre-training).
            keep_hidden: layers (0 = embedding) whose tokens before the final norm are returned in `Features.hidden`.
        """
        vision, grid = self.vision_embedding(images, patch_is_masked)
        text = self.text_embedding(token_ids, token_is_pad).to(vision.dtype)
        vision_is_real = token_is_pad.new_ones(vision.shape[:2])
        key_is_real = torch.cat([vision_is_real, ~token_is_pad], 1)[:, None, None]
        last, hidden = self.encoder(Tokens(vision, text), key_is_real, keep_hidden)
        return Features(last.vision, last.text, token_is_pad, grid, (images.shape[2], images.shape[3]), hidden)

    def encode_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch vision_tokens dim"]:
        """Encode images alone."""
        vision, _ = self.vision_embedding(images)
        last: Tokens = self.encoder(Tokens(vision, vision[:, :0]), None)[0]
        return last.vision

    def encode_texts(
        self, token_ids: Int[Tensor, "batch words"], token_is_pad: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words dim"]:
        """Encode expressions alone."""
        text = self.text_embedding(token_ids, token_is_pad)
        last: Tokens = self.encoder(Tokens(text[:, :0], text), ~token_is_pad[:, None, None])[0]
        return last.text
