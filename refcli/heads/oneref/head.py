"""OneRef's heads (NeurIPS 2024, section 3.3): a box (REC) and a mask (RES) directly from the tower's features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from refcli.config.schema import Settings, TowerSettings, Width
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.geometry.box_tensors import cxcywh_to_xyxy
from refcli.heads.base import Head, Learned, OutputName
from refcli.heads.oneref.losses import box_losses, filled_boxes, mask_losses, similarity_losses
from refcli.heads.oneref.upsampler import Upsampler
from refcli.heads.shared.layers import Calibration, ThreeLayerMLP
from refcli.losses.averages import mean_over
from refcli.losses.contrast import clip_contrast
from refcli.model.beit3 import Features, draw_as_published

CLIP_INITIAL_SCALE = 1 / 0.07


class OneRefLossWeights(Settings):
    """Weight of each loss; the defaults are the official coefficients, 0 switches a term off."""

    box_l1: NonNegativeFloat = 1.0
    box_giou: NonNegativeFloat = 1.0
    similarity_focal: NonNegativeFloat = 20.0
    similarity_dice: NonNegativeFloat = 2.0
    mask_focal: NonNegativeFloat = 20.0
    mask_dice: NonNegativeFloat = 2.0
    existence_bce: NonNegativeFloat = 0.2
    contrast: NonNegativeFloat = 0.0
    """CLIP loss between the two class vectors, over the samples with a referent; no official recipe uses it."""


class OneRefSettings(Settings):
    """Settings of the OneRef head. The defaults are the official arithmetic of the REC model."""

    rec: bool = True
    """Predict a box."""
    res: bool = False
    """Predict a mask."""
    existence: bool = False
    """Predict whether the expression refers to anything in the image (not in the official model)."""
    existence_threshold: float = Field(0.5, ge=0, le=1)
    similarity_scale: float | None = Field(None, gt=0)
    """Start value of a learnable inverse temperature (and bias) on the patch similarities. None: the raw cosine is the
    logit, as published; training from scratch needs a scale."""
    mask_scale: float | None = Field(None, gt=0)
    """The same for the mask logits."""
    mask_upsamples: int = Field(3, ge=1, le=6)
    """Stride-2 upsampling steps; three give half the image's resolution at patch 16."""
    mask_dim: Width | None = None
    """Channels of the upsampled map; None means the tower's width, as published."""
    similarity_truth: Literal["box", "mask"] = "box"
    """The truth of the patch similarities: the box (official REC) or the mask."""
    loss_weights: OneRefLossWeights = OneRefLossWeights()


@dataclass(frozen=True)
class OneRefOutput:
    """The output of the head; cosines are in -1..1."""

    vision_class: Float[Tensor, "batch dim"]
    """Projected, normalised class token of the image (e_CLS)."""
    language_class: Float[Tensor, "batch dim"]
    """Projected, normalised <s> token of the expression (e_SEP)."""
    similarity: Float[Tensor, "batch patches"]
    """Cosine of every patch with the expression."""
    similarity_logits: Float[Tensor, "batch patches"]
    boxes_cxcywh: Float[Tensor, "batch 4"] | None
    mask_cosine: Float[Tensor, "batch mask_height mask_width"] | None
    mask_logits: Float[Tensor, "batch mask_height mask_width"] | None
    existence_logits: Float[Tensor, " batch"] | None
    grid: tuple[int, int]
    image_size: tuple[int, int]


def at_least_fp32(x: Tensor) -> torch.dtype:
    """float32 for half-precision tensors, else the tensor's own type."""
    return torch.promote_types(x.dtype, torch.float32)


class OneRefHead(Head[OneRefOutput]):
    """Box by similarity-weighted pooling, mask by upsampled similarity, existence from both.

    With e the expression's vector and v_i the patches, both projected and normalised: s_i = <v_i, e>;
    box = sigmoid(MLP(sum_i softmax_i(s) W x_i)) over the unprojected patches x_i; mask = <normalise(upsample(x)), e>.
    """

    Config: ClassVar[type[Settings]] = OneRefSettings
    config: OneRefSettings
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]] = {
        "box": Learned("rec", ("box_l1", "box_giou")),
        "mask": Learned("res", ("mask_focal", "mask_dice")),
        "existence": Learned("existence", ("existence_bce",)),
    }
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rec": ("pool_projection", "box_mlp"),
        "res": ("upsampler", "mask_query", "mask_calibration"),
        "existence": ("existence",),
    }

    def __init__(self, config: OneRefSettings, tower: TowerSettings) -> None:
        super().__init__()
        dim = tower.dim
        self.config = config
        self.vision_projection = nn.Linear(dim, dim, bias=False)
        self.language_projection = nn.Linear(dim, dim, bias=False)
        self.similarity_calibration = Calibration(config.similarity_scale)
        if config.rec:
            self.pool_projection = nn.Linear(dim, dim)
            self.box_mlp = ThreeLayerMLP(dim, 4)
        if config.res:
            mask_dim = dim if config.mask_dim is None else config.mask_dim
            self.upsampler = Upsampler(dim, mask_dim, steps=config.mask_upsamples)
            self.mask_query = nn.Identity() if mask_dim == dim else nn.Linear(dim, mask_dim)
            self.mask_calibration = Calibration(config.mask_scale)
        if config.existence:
            self.existence = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 1))
        if config.loss_weights.contrast:
            self.contrast_scale = nn.Parameter(torch.tensor(math.log(CLIP_INITIAL_SCALE)))
        if tower.init == "beit3":
            for projection in (self.vision_projection, self.language_projection):
                draw_as_published(projection)

    def forward(self, features: Features) -> OneRefOutput:
        """Boxes, masks and existence of every pair of the batch; outputs that the settings switch off are None."""
        vision = F.normalize(self.vision_projection(features.vision), dim=-1)
        language = F.normalize(self.language_projection(features.text[:, 0]), dim=-1)
        similarity = (vision[:, 1:] @ language.unsqueeze(-1)).squeeze(-1)
        logits = self.similarity_calibration(similarity)
        attention = logits.to(at_least_fp32(logits)).softmax(-1).to(features.patches.dtype).unsqueeze(1)
        pooled = (attention @ features.patches).squeeze(1)
        boxes = mask_cosine = mask_logits = existence = None
        if self.config.rec:
            boxes = self.box_mlp(self.pool_projection(pooled))
            boxes = boxes.to(at_least_fp32(boxes)).sigmoid()
        if self.config.res:
            mask_cosine = self._mask_cosine(features, language)
            mask_logits = self.mask_calibration(mask_cosine)
        if self.config.existence:
            existence = self.existence(torch.cat([features.text[:, 0], pooled], -1)).squeeze(-1).float()
        return OneRefOutput(
            vision[:, 0], language, similarity, logits, boxes, mask_cosine, mask_logits, existence,
            features.grid, features.image_size,
        )  # fmt: skip

    def _mask_cosine(
        self, features: Features, language: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch mask_height mask_width"]:
        """Cosine of every upsampled vision vector with the expression."""
        upsampled: Tensor = self.upsampler(features.patches)
        query = F.normalize(self.mask_query(language), dim=-1)
        product = (upsampled @ query.to(upsampled.dtype).unsqueeze(-1)).squeeze(-1)
        norm = torch.linalg.vector_norm(upsampled, dim=-1, dtype=at_least_fp32(upsampled))
        return self.upsampler.to_maps(product.to(norm.dtype) / norm.clamp(min=1e-12), features.grid)

    def losses(self, output: OneRefOutput, targets: Targets) -> dict[str, Tensor]:
        """The official losses; samples without a referent train the similarity, the mask and the existence only."""
        weights = self.config.loss_weights
        raw: dict[str, Tensor] = {}
        exists = targets.exists
        if output.boxes_cxcywh is not None:
            raw |= box_losses(output.boxes_cxcywh, targets)
        if weights.similarity_focal or weights.similarity_dice:
            pixels = (
                filled_boxes(targets.boxes_cxcywh, output.image_size) & exists[:, None, None]
                if self.config.similarity_truth == "box"
                else targets.masks
            )
            raw |= similarity_losses(output.similarity_logits, pixels, exists, grid=output.grid)
        if output.mask_logits is not None:
            raw |= mask_losses(output.mask_logits, targets)
        if output.existence_logits is not None:
            raw["existence_bce"] = F.binary_cross_entropy_with_logits(output.existence_logits, exists.float())
        if weights.contrast:
            contrast = clip_contrast(
                output.vision_class.float(), output.language_class.float(), self.contrast_scale.exp()
            )
            raw["contrast"] = mean_over(contrast, exists) / exists.shape[0]
        return {name: loss * getattr(weights, name) for name, loss in raw.items() if getattr(weights, name)}

    def predict(self, output: OneRefOutput) -> Prediction:
        """One target per expression.

        Its score is the existence probability where the model has one; otherwise the highest patch similarity,
        mapped from -1..1 to 0..1 (uncalibrated; the official model has no score).
        """
        height, width = output.image_size
        boxes = None
        if output.boxes_cxcywh is not None:
            frame = output.boxes_cxcywh.new_tensor([width, height, width, height])
            boxes = cxcywh_to_xyxy(output.boxes_cxcywh).clamp(0, 1).mul(frame).unsqueeze(1)
        existence = None if output.existence_logits is None else output.existence_logits.sigmoid()
        best = (output.similarity.float().amax(-1) + 1) / 2
        return Prediction(
            boxes_xyxy=boxes,
            scores=(best if existence is None else existence).unsqueeze(1),
            mask_logits=None if output.mask_logits is None else output.mask_logits.float().unsqueeze(1),
            existence=existence,
            existence_threshold=self.config.existence_threshold,
        )
