"""ReLA: regions of the image attend to the image, the words and one another, and vote for a mask or "no target"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from refcli.config.schema import InnerWidth, Layers, NumHeads, Settings, TowerSettings, Width
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.heads.base import Head, Learned, OutputName
from refcli.heads.rela.deformable_attention import DeformableAttention
from refcli.heads.rela.losses import MinimapTruth, rela_losses
from refcli.heads.rela.pixel_decoder import CHANNELS_PER_GROUP, PixelDecoder
from refcli.heads.rela.region_decoder import RegionDecoder, RegionLayerSettings
from refcli.heads.shared.masks import predict_from_mask
from refcli.heads.shared.simple_pyramid import SWIN_BASE_CHANNELS, SimplePyramid
from refcli.model.beit3 import Features

MASK_THRESHOLD = 0.5
"""The larger of the two logits wins."""


class RelaLossWeights(Settings):
    """Weight of each loss; 0 switches a term off. Published: 5 for the mask, a tenth of it for the others."""

    mask_ce: NonNegativeFloat = 5.0
    minimap_ce: NonNegativeFloat = 0.5
    no_target_ce: NonNegativeFloat = 0.5


class RelaSettings(Settings):
    """Settings of the ReLA head. The defaults are the published sizes, without attention to padded words."""

    dim: int = Field(256, ge=8, le=1 << 16)
    """Width of pixel decoder and region decoder; a multiple of 8 (for positions and GroupNorm) and of `heads`."""
    heads: NumHeads = 8
    regions: int = Field(10, ge=1, le=256)
    """P: the image has P x P regions. The paper tries 4, 8, 10 and 12."""
    decoder_layers: Layers = 9
    decoder_ffn_dim: InnerWidth = 2048
    pixel_layers: int = Field(6, ge=0, le=256)
    """Layers of deformable attention in the pixel decoder."""
    pixel_ffn_dim: InnerWidth = 1024
    points: int = Field(4, ge=1, le=256)
    """Points that a head of the deformable attention samples on each level."""
    pyramid_channels: tuple[Width, Width, Width, Width] = SWIN_BASE_CHANNELS
    """Channels of the maps between tower and pixel decoder, finest first."""
    mean_of_regions: bool | None = None
    """Divide the sum of all regions' masks (the published mask) by their number: with 100 regions, its logits
    then start at the order of 1 instead of 100, and training from scratch at a high learning rate is stable. None: on
    for towers that are trained from scratch (`init: scaled`), unless `legacy` is on."""
    pre_norm: bool = False
    """Normalise the input of the region decoder's layers (an option of the published code) instead of the output."""
    legacy: bool = False
    """Exactly as published: regions attend to padded words, and the truth of a cell is that of its centre."""
    minimap_truth: MinimapTruth | None = None
    """None: `area`, or with `legacy` the published `centre`."""
    existence: bool = True
    """Predict "no target", as the published head always does; off for weights trained without such samples."""
    existence_threshold: float = Field(0.5, ge=0, le=1)
    loss_weights: RelaLossWeights = RelaLossWeights()

    @model_validator(mode="after")
    def _fits(self) -> RelaSettings:
        if self.dim % CHANNELS_PER_GROUP or self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of {CHANNELS_PER_GROUP} and of heads {self.heads}")
        return self


@dataclass(frozen=True)
class RelaOutput:
    """The output of the head: logits of the foreground minus those of the background."""

    mask_logits: Float[Tensor, "batch mask_rows mask_columns"]
    minimap_logits: Float[Tensor, "batch regions"]
    """Of the cells of the region grid, row-major."""
    existence_logits: Float[Tensor, " batch"] | None


class RelaHead(Head[RelaOutput]):
    """Pyramid, pixel decoder, region decoder (Liu et al., GRES: Generalized Referring Expression Segmentation).

    It predicts one mask of all referred regions, and whether there is any; its box is that of the mask.
    """

    Config: ClassVar[type[Settings]] = RelaSettings
    config: RelaSettings
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]] = {
        "mask": Learned(None, ("mask_ce",)),
        "existence": Learned("existence", ("no_target_ce",)),
    }

    def __init__(self, config: RelaSettings, tower: TowerSettings) -> None:
        super().__init__()
        self.config = config
        self.pyramid = SimplePyramid(tower.dim, config.pyramid_channels)
        is_fresh = tower.init == "scaled" and not config.legacy
        self.pixel_decoder = PixelDecoder(
            config.pyramid_channels,
            config.dim,
            heads=config.heads,
            num_layers=config.pixel_layers,
            ffn_dim=config.pixel_ffn_dim,
            num_points=config.points,
        )
        self.decoder = RegionDecoder(
            RegionLayerSettings(config.dim, config.heads, config.decoder_ffn_dim, config.pre_norm, tower.attention),
            num_layers=config.decoder_layers,
            text_dim=tower.dim,
            mask_dim=config.dim,
            num_regions=config.regions**2,
            mean_of_regions=is_fresh if config.mean_of_regions is None else config.mean_of_regions,
        )
        self._reset_parameters(scaled=tower.init == "scaled")

    def _reset_parameters(self, *, scaled: bool) -> None:
        """Draw fresh weights as published: Xavier's, with zero biases, except for the three read-outs (torch's).

        As published, the words have no effect at first, and deformable attention weighs its points equally. With a
        tower trained from scratch (`scaled`), both depend on their input from the first step on.
        """
        read_outs = (self.decoder.mask_filter, self.decoder.minimap, self.decoder.no_target)
        kept = {module for part in read_outs for module in part.modules()}
        layers = [module for part in (self.pixel_decoder, self.decoder) for module in part.modules()]
        for module in layers:
            if isinstance(module, nn.Linear | nn.Conv2d) and module not in kept:
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in layers:
            if isinstance(module, DeformableAttention):
                module.reset_parameters(even=not scaled)
        if not scaled:
            nn.init.zeros_(self.decoder.language_projection.weight)

    def forward(self, features: Features) -> RelaOutput:
        """Mask logits at four times the grid, minimap and existence."""
        maps = self.pixel_decoder(self.pyramid(features.patches, features.grid))
        word_is_open = None if self.config.legacy else ~features.token_is_pad[:, None, None]
        answer = self.decoder(maps, features.text, word_is_open)
        mask, minimap, no_target = answer.mask_logits, answer.minimap_logits, answer.no_target_logits
        return RelaOutput(
            mask_logits=mask[:, 1] - mask[:, 0],
            minimap_logits=minimap[..., 1] - minimap[..., 0],
            existence_logits=no_target[:, 0] - no_target[:, 1] if self.config.existence else None,
        )

    def losses(self, output: RelaOutput, targets: Targets) -> dict[str, Tensor]:
        """Weighted cross-entropies of the mask (at the model frame's resolution), of the minimap and of no-target."""
        weights = self.config.loss_weights
        raw = rela_losses(
            output.mask_logits,
            output.minimap_logits,
            output.existence_logits,
            targets,
            minimap=self.config.minimap_truth or ("centre" if self.config.legacy else "area"),
        )
        return {name: loss * getattr(weights, name) for name, loss in raw.items() if getattr(weights, name)}

    def predict(self, output: RelaOutput) -> Prediction:
        """One target per expression, with the box of its mask (`boxes_xyxy` is None); see `predict_from_mask`."""
        return predict_from_mask(
            output.mask_logits,
            output.existence_logits,
            mask_threshold=MASK_THRESHOLD,
            threshold_first=False,
            existence_threshold=self.config.existence_threshold,
        )
