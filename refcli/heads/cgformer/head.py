"""CGFormer: query tokens that group the places of the image level by level, and a mask from one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from refcli.config.schema import Settings, TowerSettings, Width
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.heads.base import Head, Learned, OutputName
from refcli.heads.cgformer.consecutive_decoder import ConsecutiveDecoder, Decoded
from refcli.heads.cgformer.grouping import Noise
from refcli.heads.cgformer.losses import grouping_dice, token_contrast
from refcli.heads.shared.existence import ExistenceOutput, existence_bce
from refcli.heads.shared.layers import NUM_DOUBLINGS, BilinearUpsampler
from refcli.heads.shared.masks import mask_bce_and_dice, predict_from_mask
from refcli.heads.shared.simple_pyramid import SWIN_BASE_CHANNELS, SimplePyramid
from refcli.model.beit3 import Features


class CGFormerLossWeights(Settings):
    """Weight of each loss; 0 switches a term off. Mask and grouping: the published code's. Existence: InstanceVG's."""

    mask_bce: NonNegativeFloat = 1.0
    mask_dice: NonNegativeFloat = 1.0
    grouping_dice: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.001, 0.01, 0.1)
    """Coarsest level first; all zero switches it off."""
    contrast: NonNegativeFloat = 0.0
    """Referent token and sentence (in the paper, not in the published code); adds a projection of the sentence."""
    existence_bce: NonNegativeFloat = 0.2


GridSide = Annotated[int, Field(ge=1, le=256)]


class CGFormerSettings(Settings):
    """Settings of the CGFormer head. The defaults are the published sizes, with the published code's errors fixed."""

    dim: Width = 512
    """Width of everything after the pyramid."""
    pyramid_channels: tuple[Width, Width, Width, Width] = SWIN_BASE_CHANNELS
    """Channels of the pyramid's maps, finest first; the default is Swin-B's, which the published decoder reads."""
    tokens: int = Field(2, ge=2, le=1024)
    """Query tokens; the last is the referent."""
    lite: bool = False
    """Predict the mask at 4 instead of 16 times the grid: 120 instead of 857 G multiply-accumulates at 480 pixels, 4.7M
    fewer parameters, and a sixteenth of the memory of the largest maps. Not as published, so it excludes `legacy`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    noise: Noise | None = None
    """When Gumbel noise takes part in assigning places to tokens; None: while training (with `legacy`: always)."""
    legacy: bool = False
    """Compute what the published code does: noise at test time too, a temperature that is never trained, a mask with a
    frame of one pixel that is then resized to the image, and dice on the hard assignment as if it were a logit."""
    position_grid: tuple[GridSide, GridSide] | None = None
    """(rows, columns) of patches of the position tables; None: the tower's. Other sizes resample them."""
    mask_threshold: float = Field(0.5, gt=0, lt=1)
    """A place belongs to the mask above this probability."""
    existence: bool = False
    """Predict whether the expression refers to anything in the image (not in the paper)."""
    existence_threshold: float = Field(0.5, ge=0, le=1)
    loss_weights: CGFormerLossWeights = CGFormerLossWeights()

    @model_validator(mode="after")
    def _fits(self) -> CGFormerSettings:
        if self.legacy and self.lite:
            raise ValueError("lite changes the published model, which legacy reproduces: choose one")
        return self


@dataclass(frozen=True)
class CGFormerOutput:
    """The output of the head."""

    mask_logits: Float[Tensor, "batch mask_rows mask_columns"]
    decoded: Decoded
    sentences: Float[Tensor, "batch dim"] | None
    """Mean of the words, projected; for the contrastive loss."""
    existence_logits: Float[Tensor, " batch"] | None


class Projector(nn.Module):
    """Mask logit of a place = <its vector, w> + b, where [w, b] is a linear function of the referent token.

    Args:
        dim: width of maps and token.
        doublings: of the maps' resolution first; with 2, these convolutions are most of the head's cost.
        stray_padding: apply the 1x1 kernel with a padding of 1, as the published code does; the mask gets a frame of
            one pixel with logit b.
    """

    def __init__(self, dim: int, *, doublings: int, stray_padding: bool) -> None:
        super().__init__()
        self.stray_padding = stray_padding
        self.upsampler = BilinearUpsampler(dim, doublings=doublings)
        self.kernel = nn.Linear(dim, dim + 1)

    def forward(
        self, maps: Float[Tensor, "batch dim rows columns"], referent: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch mask_rows mask_columns"]:
        """Mask logits."""
        maps = self.upsampler(maps)
        kernel: Tensor = self.kernel(referent).to(maps.dtype)
        logits = torch.einsum("bdhw,bd->bhw", maps, kernel[:, :-1])
        if self.stray_padding:
            logits = F.pad(logits, (1, 1, 1, 1))
        return logits + kernel[:, -1, None, None]


class CGFormerHead(Head[CGFormerOutput]):
    """Pyramid, consecutive decoder, projector (Tang et al. 2023). It predicts a mask; its box is that of the mask."""

    Config: ClassVar[type[Settings]] = CGFormerSettings
    config: CGFormerSettings
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]] = {
        "mask": Learned(None, ("mask_bce", "mask_dice")),
        "existence": Learned("existence", ("existence_bce",)),
    }
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "existence": ("existence",),
        "loss_weights.contrast": ("sentence_projection",),
    }

    def __init__(self, config: CGFormerSettings, tower: TowerSettings) -> None:
        super().__init__()
        self.config = config
        self.pyramid = SimplePyramid(tower.dim, config.pyramid_channels)
        self.decoder = ConsecutiveDecoder(
            config.dim,
            channels=config.pyramid_channels,
            text_dim=tower.dim,
            grid=config.position_grid or tower.grid,
            num_tokens=config.tokens,
            dropout=config.dropout,
            noise=config.noise or ("always" if config.legacy else "training"),
            published_temperature=config.legacy,
        )
        doublings = 0 if config.lite else NUM_DOUBLINGS
        self.projector = Projector(config.dim, doublings=doublings, stray_padding=config.legacy)
        if config.existence:
            self.existence = ExistenceOutput(tower.dim)
        if config.loss_weights.contrast:
            self.sentence_projection = nn.Linear(tower.dim, config.dim)

    def forward(self, features: Features) -> CGFormerOutput:
        """Mask logits, at 16 times the grid (`lite`: 4 times), and the inputs of the losses."""
        decoded = self.decoder(self.pyramid(features.patches, features.grid), features.text, features.token_is_pad)
        logits = self.projector(decoded.maps, decoded.tokens[:, -1])
        if self.config.legacy:
            size = features.image_size
            logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        existence = None
        if self.config.existence:
            existence = self.existence(features.text[:, 0], features.patches, features.grid, logits)
        sentences = None
        if self.config.loss_weights.contrast:
            is_real = (~features.token_is_pad)[..., None].to(features.text.dtype)
            sentences = self.sentence_projection((features.text * is_real).sum(1) / is_real.sum(1))
        return CGFormerOutput(logits, decoded, sentences, existence)

    def losses(self, output: CGFormerOutput, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropy and dice of the mask at the model frame's resolution, dice of each level's grouping, and the
        optional contrast and existence."""
        weights = self.config.loss_weights
        raw = mask_bce_and_dice(output.mask_logits, targets, size="image")
        if output.sentences is not None:
            raw["contrast"] = token_contrast(output.decoded.tokens, output.sentences, targets.exists)
        if output.existence_logits is not None:
            raw["existence_bce"] = existence_bce(output.existence_logits, targets.exists)
        losses = {name: loss * getattr(weights, name) for name, loss in raw.items() if getattr(weights, name)}
        if any(weights.grouping_dice):
            levels = output.decoded.levels
            chosen = [level.assignment[:, -1] if self.config.legacy else level.referent_logits for level in levels]
            losses["grouping_dice"] = grouping_dice(
                chosen, output.decoded.grids, targets, weights=weights.grouping_dice
            )
        return losses

    def predict(self, output: CGFormerOutput) -> Prediction:
        """One target per expression, its box from its mask (`boxes_xyxy` is None); see `predict_from_mask`."""
        return predict_from_mask(
            output.mask_logits,
            output.existence_logits,
            mask_threshold=self.config.mask_threshold,
            threshold_first=False,
            existence_threshold=self.config.existence_threshold,
        )
