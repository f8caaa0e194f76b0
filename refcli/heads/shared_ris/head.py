"""Shared-RIS: one fusion network and one decoder for image and words, on the tower's hidden layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from refcli.config.schema import NumHeads, Settings, TowerSettings, Width
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.errors import ConfigError
from refcli.heads.base import Head, Learned, OutputName
from refcli.heads.shared.existence import ExistenceOutput, existence_bce
from refcli.heads.shared.layers import Calibration
from refcli.heads.shared.masks import LossSize, mask_bce_and_dice, predict_from_mask
from refcli.heads.shared_ris.fpn import SharedFPN, TokenProjection
from refcli.heads.shared_ris.mask_decoder import SharedMaskDecoder
from refcli.model.beit3 import BEIT3_INIT_STD, Features
from refcli.model.multiway import Tokens

NUM_STAGES = 4
"""Layers 3, 6, 9 and 12 of 12 are the paper's best choice."""


class SharedRISLossWeights(Settings):
    """Weight of each loss; 0 switches a term off. Mask terms: the paper's. Existence: InstanceVG's."""

    mask_bce: NonNegativeFloat = 2.0
    mask_dice: NonNegativeFloat = 0.5
    existence_bce: NonNegativeFloat = 0.2


class SharedRISSettings(Settings):
    """Settings of the Shared-RIS head. The defaults are the paper's equations read literally, at its sizes."""

    dim: Width = 512
    """d_w, the width of all layers of the head."""
    heads: NumHeads = 8
    """Attention heads. The paper does not state them; ours have 64 channels each, as in the tower."""
    fpn: Literal["shared", "none"] = "shared"
    """`none`: the tower's last tokens, projected (an ablation); `stages` and `norm_last` then have no effect."""
    stages: tuple[int, ...] | None = None
    """Layers of the tower that the FPN fuses; None: those at a quarter, half, three quarters and the top. Only with an
    FPN."""
    multiway_proj: bool = False
    """A projection W_j each for image tokens and words: not in the paper's equations but in its parameter counts."""
    norm_last: bool = False
    """Read the tower's top layer after its final LayerNorm, which the equations leave out (and so never train). Only
    with an FPN: without one, the last tokens are always normed."""
    decoder_layers: int = Field(1, ge=0, le=256)
    """The paper tries 0 to 3."""
    mask_scale: float | None = Field(None, gt=0)
    """Initial value of a learnable scale (and bias) on the mask logits; None, as in the paper: none."""
    mask_threshold: float = Field(0.35, gt=0, lt=1)
    """A place belongs to the mask above this probability."""
    threshold_first: bool = False
    """Threshold before the mask is resized, as the paper does, instead of after."""
    loss_size: LossSize = "image"
    """Resolution of the mask losses: the model frame's, or the mask's own (as CRIS does)."""
    existence: bool = False
    """Predict whether the expression refers to anything in the image (not in the paper)."""
    existence_threshold: float = Field(0.5, ge=0, le=1)
    loss_weights: SharedRISLossWeights = SharedRISLossWeights()

    @model_validator(mode="after")
    def _fits(self) -> SharedRISSettings:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.stages is not None and (not self.stages or sorted(set(self.stages)) != list(self.stages)):
            raise ValueError(f"stages {self.stages} are not layers in rising order")
        return self


@dataclass(frozen=True)
class SharedRISOutput:
    """The output of the head."""

    mask_logits: Float[Tensor, "batch mask_rows mask_columns"]
    existence_logits: Float[Tensor, " batch"] | None


class SharedRISHead(Head[SharedRISOutput]):
    """Shared FPN, then Shared Mask Decoder (Yu et al., Shared-RIS). It predicts a mask; its box is that of the mask.

    Raises:
        ConfigError: a stage that the tower does not have.
    """

    Config: ClassVar[type[Settings]] = SharedRISSettings
    config: SharedRISSettings
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]] = {
        "mask": Learned(None, ("mask_bce", "mask_dice")),
        "existence": Learned("existence", ("existence_bce",)),
    }
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "existence": ("existence",),
        "mask_scale": ("mask_calibration",),
    }

    def __init__(self, config: SharedRISSettings, tower: TowerSettings) -> None:
        super().__init__()
        self.config = config
        self.num_layers = tower.layers
        if config.fpn == "shared":
            self.stages = config.stages or _quarters(tower.layers)
            if not all(1 <= stage <= tower.layers for stage in self.stages):
                raise ConfigError(
                    f"the tower has the layers 1 to {tower.layers}, not {self.stages}",
                    where="model.head.settings.stages",
                )
            self.hidden_layers = tuple(stage for stage in self.stages if not self._is_normed(stage))
            self.fpn = SharedFPN(
                tower.dim,
                config.dim,
                num_stages=len(self.stages),
                heads=config.heads,
                multiway=config.multiway_proj,
                attention_implementation=tower.attention,
            )
        else:
            self.projection = TokenProjection(tower.dim, config.dim, multiway=config.multiway_proj)
        self.decoder = SharedMaskDecoder(
            config.dim, num_layers=config.decoder_layers, heads=config.heads, attention_implementation=tower.attention
        )
        self.mask_calibration = Calibration(config.mask_scale)
        if config.existence:
            self.existence = ExistenceOutput(tower.dim)
        self._reset_parameters(scaled=tower.init == "scaled")

    def _reset_parameters(self, *, scaled: bool) -> None:
        """Draw fresh weights: linear layers as the tower's, with zero biases; convolutions by He et al. 2015."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 if scaled else BEIT3_INIT_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Features) -> SharedRISOutput:
        """Mask logits at four times the grid, and existence where it is on."""
        vision_is_real = features.token_is_pad.new_ones(features.vision.shape[:2])
        key_is_real = torch.cat([vision_is_real, ~features.token_is_pad], 1)[:, None, None]
        last = Tokens(features.vision, features.text)
        if self.config.fpn == "shared":
            stages = [last if self._is_normed(stage) else features.hidden[stage] for stage in self.stages]
            tokens = self.fpn(stages, key_is_real)
        else:
            tokens = self.projection(last)
        logits = self.mask_calibration(self.decoder(tokens, features.grid, key_is_real))
        existence = None
        if self.config.existence:
            existence = self.existence(features.text[:, 0], features.patches, features.grid, logits)
        return SharedRISOutput(logits, existence)

    def losses(self, output: SharedRISOutput, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropy and dice of the mask (the paper's), and cross-entropy of existence."""
        weights = self.config.loss_weights
        raw = mask_bce_and_dice(output.mask_logits, targets, size=self.config.loss_size)
        if output.existence_logits is not None:
            raw["existence_bce"] = existence_bce(output.existence_logits, targets.exists)
        return {name: loss * getattr(weights, name) for name, loss in raw.items() if getattr(weights, name)}

    def predict(self, output: SharedRISOutput) -> Prediction:
        """One target per expression, its box from its mask (`boxes_xyxy` is None); see `predict_from_mask`."""
        return predict_from_mask(
            output.mask_logits,
            output.existence_logits,
            mask_threshold=self.config.mask_threshold,
            threshold_first=self.config.threshold_first,
            existence_threshold=self.config.existence_threshold,
        )

    def _is_normed(self, stage: int) -> bool:
        """Whether a stage is read after the tower's final LayerNorm."""
        return self.config.norm_last and stage == self.num_layers


def _quarters(layers: int) -> tuple[int, ...]:
    """The layers at a quarter, half, three quarters and the top, rounded up; fewer in a very small tower."""
    return tuple(sorted({-(-layers * quarter // NUM_STAGES) for quarter in range(1, NUM_STAGES + 1)}))
