"""The instances head: a box, a mask and a score for every referred object, and one mask and existence for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from refcli.config.schema import InnerWidth, NumHeads, Settings, TowerSettings, Width
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import SCORE_THRESHOLD, Prediction
from refcli.errors import ConfigError
from refcli.geometry.box_tensors import cxcywh_to_xyxy
from refcli.heads.base import Head, Learned, OutputName
from refcli.heads.instances.decoder import (
    BoxEmbedding,
    DecoderTokens,
    QueryLayer,
    QueryStage,
    ReadOut,
    box_logits,
    box_prior,
    open_patches,
)
from refcli.heads.instances.losses import centre_focal, stage_losses
from refcli.heads.instances.seeds import Seeds, find_seeds
from refcli.heads.oneref.upsampler import Upsampler
from refcli.heads.shared.existence import existence_bce
from refcli.heads.shared.layers import ThreeLayerMLP
from refcli.heads.shared.masks import mask_bce_and_dice
from refcli.model.beit3 import Features

INITIAL_CENTRE_BIAS = -2.19
"""The centre map starts at a probability of 0.1 everywhere (CenterNet)."""
LEAST_WEIGHT = 1e-6
"""Keeps weighted means finite where all weights vanish, and logits where a score is 0 or 1."""


class InstancesLossWeights(Settings):
    """Weight of each loss; 0 switches a term off."""

    centre_focal: NonNegativeFloat = 0.5
    score_bce: NonNegativeFloat = 1.0
    box_l1: NonNegativeFloat = 1.0
    box_giou: NonNegativeFloat = 0.4
    instance_bce: NonNegativeFloat = 1.0
    instance_dice: NonNegativeFloat = 1.0
    union_bce: NonNegativeFloat = 1.0
    union_dice: NonNegativeFloat = 1.0
    existence_bce: NonNegativeFloat = 0.2


class InstancesSettings(Settings):
    """Settings of the instances head."""

    dim: int = Field(256, ge=4, le=1 << 16, multiple_of=4)
    """Width of queries, patches and words; a multiple of `heads`."""
    mask_dim: Width = 128
    """Channels of the upsampled map."""
    queries: int = Field(10, ge=1, le=1024)
    """Largest number of targets; may be raised for crowds without training."""
    decoder_layers: int = Field(1, ge=0, le=64)
    heads: NumHeads = 8
    ffn_dim: InnerWidth = 1024
    mask_upsamples: int = Field(2, ge=1, le=6)
    """Stride-2 upsampling steps of the masks; two give a quarter of the image's resolution at patch 16."""
    existence: bool = True
    """Predict whether the expression refers to anything in the image."""
    existence_threshold: float = Field(0.5, ge=0, le=1)
    score_threshold: float = Field(0.5, gt=0, lt=1)
    """Queries with a lower score are no targets, except for the best one. `predict` shifts all scores so that this one
    becomes 0.7, which is the field's threshold (gRefCOCO)."""
    loss_weights: InstancesLossWeights = InstancesLossWeights()

    @model_validator(mode="after")
    def _fits(self) -> InstancesSettings:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


@dataclass(frozen=True)
class InstancesOutput:
    """The output of the head."""

    centre_logits: Float[Tensor, "batch rows columns"]
    """That the patch holds the centre of a referred object."""
    seeds: Seeds
    stages: tuple[QueryStage, ...]
    """Before the first decoder layer, and after each."""
    mask_logits: Float[Tensor, "batch queries mask_rows mask_columns"]
    """Of the last stage."""
    union_mask_logits: Float[Tensor, "batch mask_rows mask_columns"]
    """Of everything that is referred to."""
    existence_logits: Float[Tensor, " batch"] | None
    grid: tuple[int, int]
    image_size: tuple[int, int]


class InstancesHead(Head[InstancesOutput]):
    """Seeds at the local maxima of a centre map, refined by a decoder; all masks are products with one map.

    With x the patches and s the vector of <s>, both at the head's width: a query is x[seed] + s; its mask is
    <MLP(query), F> + gain * `box_prior` on the upsampled map F, and the union mask <MLP(s), F>. A query's score is
    sigmoid(score) * sigmoid(existence). From Mask2Former: masks as products, masked attention, losses at every stage;
    from DAB-DETR: boxes that are refined; from CenterNet: the map and its maxima.
    """

    Config: ClassVar[type[Settings]] = InstancesSettings
    config: InstancesSettings
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]] = {
        "box": Learned(None, ("box_l1", "box_giou")),
        "mask": Learned(None, ("union_bce", "union_dice", "instance_bce", "instance_dice")),
        "existence": Learned("existence", ("existence_bce",)),
    }
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {"existence": ("existence",)}
    reads_regions: ClassVar[bool] = True

    def __init__(self, config: InstancesSettings, tower: TowerSettings) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_projection = nn.Linear(tower.dim, dim)
        self.word_projection = nn.Linear(tower.dim, dim)
        self.sentence_projection = nn.Linear(dim, dim)
        self.centre = nn.Linear(dim, 1)
        self.read_out = ReadOut(dim, config.mask_dim)
        self.upsampler = Upsampler(dim, config.mask_dim, steps=config.mask_upsamples)
        self.union_vector = ThreeLayerMLP(dim, config.mask_dim)
        self.mask_bias = nn.Parameter(torch.zeros(()))
        self.prior_gain = nn.Parameter(torch.ones(()))
        self.layers = nn.ModuleList(
            QueryLayer(dim, config.heads, config.ffn_dim, tower.attention) for _ in range(config.decoder_layers)
        )
        if config.decoder_layers:
            self.box_embedding = BoxEmbedding(dim)
        if config.existence:
            self.existence = nn.Sequential(nn.LayerNorm(3 * dim), nn.Linear(3 * dim, 1))
        nn.init.constant_(self.centre.bias, INITIAL_CENTRE_BIAS)

    def forward(self, features: Features) -> InstancesOutput:
        """Scores, boxes and masks of the queries at every stage, the union mask and the existence."""
        patches = self.patch_projection(features.patches)
        words = self.word_projection(features.text)
        rows, columns = features.grid
        centre_logits = self.centre(patches).squeeze(-1).float().view(-1, rows, columns)
        seeds = find_seeds(centre_logits, self.config.queries)
        fine = self.upsampler(patches)
        coarse = fine.view(len(fine), rows * columns, -1, fine.shape[-1]).mean(2)
        chosen = patches.gather(1, seeds.patches[..., None].expand(-1, -1, patches.shape[-1]))
        queries = chosen + self.sentence_projection(words[:, :1])
        tokens = DecoderTokens(patches, words, ~features.token_is_pad[:, None, None], seeds.are_alive[:, None, None])
        stages = [self._read(queries, seeds, self.read_out.first_box_logits(seeds.points), coarse, (rows, columns))]
        for layer in self.layers:
            last = stages[-1]
            places = self.box_embedding(last.boxes_cxcywh.detach(), like=queries)
            queries = layer(queries, places, tokens, open_patches(last.coarse_mask_logits))
            stages.append(self._read(queries, seeds, box_logits(last.boxes_cxcywh), coarse, (rows, columns)))
        union_vector = self.union_vector(words[:, :1])
        vectors = torch.cat((stages[-1].mask_vectors, union_vector), 1)
        products = self._products(vectors, fine)
        planes = self.upsampler.to_maps(products.flatten(0, 1), features.grid)
        maps = planes.view(*products.shape[:2], *planes.shape[1:])
        prior = box_prior(stages[-1].boxes_cxcywh, *planes.shape[1:]).view_as(maps[:, :-1])
        existence = None
        if self.config.existence:
            coverage = self._products(union_vector, coarse).squeeze(1).detach().sigmoid()
            existence = self._existence(words[:, 0], patches, coverage, queries, stages[-1].score_logits)
        return InstancesOutput(
            centre_logits=centre_logits,
            seeds=seeds,
            stages=tuple(stages),
            mask_logits=maps[:, :-1] + self.prior_gain * prior,
            union_mask_logits=maps[:, -1],
            existence_logits=existence,
            grid=features.grid,
            image_size=features.image_size,
        )

    def _read(
        self,
        queries: Float[Tensor, "batch queries dim"],
        seeds: Seeds,
        reference_logits: Float[Tensor, "batch queries 4"],
        coarse: Float[Tensor, "batch patches mask_dim"],
        grid: tuple[int, int],
    ) -> QueryStage:
        score, boxes, vectors = self.read_out(queries, seeds, reference_logits)
        masks = self._products(vectors, coarse) + self.prior_gain * box_prior(boxes, *grid)
        return QueryStage(score, boxes, vectors, masks)

    def _products(
        self, vectors: Float[Tensor, "batch queries mask_dim"], places: Float[Tensor, "batch places mask_dim"]
    ) -> Float[Tensor, "batch queries places"]:
        """Products of mask vectors with a map, fp32."""
        products: Tensor = (vectors @ places.transpose(1, 2)).float()
        return products + self.mask_bias

    def _existence(
        self,
        sentence: Float[Tensor, "batch dim"],
        patches: Float[Tensor, "batch patches dim"],
        coverage: Float[Tensor, "batch patches"],
        queries: Float[Tensor, "batch queries dim"],
        score_logits: Float[Tensor, "batch queries"],
    ) -> Float[Tensor, " batch"]:
        """Existence logits from <s>, the patches in the union mask and the queries with a score."""
        read = (sentence, _weighted_mean(patches, coverage), _weighted_mean(queries, score_logits.detach().sigmoid()))
        logits: Tensor = self.existence(torch.cat(read, -1))
        return logits.squeeze(-1).float()

    def losses(self, output: InstancesOutput, targets: Targets) -> dict[str, Tensor]:
        """The weighted losses; those of the queries are sums over the stages (DETR).

        Raises:
            ConfigError: the targets have no regions.
        """
        if targets.regions is None:
            raise ConfigError(
                "the instances head needs the regions of every sample, and this batch has only their union",
                where="targets.regions",
                hint="build the samples with regions: GroundingDataset(..., with_regions=True)",
            )
        weights = self.config.loss_weights
        raw = {"centre_focal": centre_focal(output.centre_logits, targets.regions)}
        num_stages = len(output.stages)
        for number, stage in enumerate(output.stages, start=1):
            fine = output.mask_logits if number == num_stages else None
            of_stage = stage_losses(stage, output.seeds, targets, grid=output.grid, mask_logits=fine)
            for name, loss in of_stage.items():
                raw[name] = raw.get(name, 0.0) + loss
        union = mask_bce_and_dice(output.union_mask_logits, targets, size="image")
        raw |= {"union_bce": union["mask_bce"], "union_dice": union["mask_dice"]}
        if output.existence_logits is not None:
            raw["existence_bce"] = existence_bce(output.existence_logits, targets.exists)
        return {name: loss * getattr(weights, name) for name, loss in raw.items() if getattr(weights, name)}

    def score_threshold_of(self, score: float) -> float:
        """The value of the setting `score_threshold` with which this predicted score becomes 0.7."""
        log_odds = _log_odds(score) - _log_odds(SCORE_THRESHOLD) + _log_odds(self.config.score_threshold)
        return 1 / (1 + math.exp(-log_odds))

    def predict(self, output: InstancesOutput) -> Prediction:
        """All queries as targets with their scores; those below `score_threshold` are candidates only."""
        last = output.stages[-1]
        height, width = output.image_size
        scale = last.boxes_cxcywh.new_tensor([width, height, width, height])
        scores = last.score_logits.sigmoid()
        existence = None if output.existence_logits is None else output.existence_logits.sigmoid()
        scores = scores if existence is None else scores * existence[:, None]
        shift = _log_odds(SCORE_THRESHOLD) - _log_odds(self.config.score_threshold)
        return Prediction(
            boxes_xyxy=cxcywh_to_xyxy(last.boxes_cxcywh).clamp(0, 1) * scale,
            scores=(torch.logit(scores, eps=LEAST_WEIGHT) + shift).sigmoid(),
            mask_logits=output.mask_logits,
            existence=existence,
            existence_threshold=self.config.existence_threshold,
            score_threshold=SCORE_THRESHOLD,
            union_mask_logits=output.union_mask_logits,
        )


def _weighted_mean(
    vectors: Float[Tensor, "batch tokens dim"], weights: Float[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=LEAST_WEIGHT)
    mean: Tensor = (shares.to(vectors.dtype).unsqueeze(1) @ vectors).squeeze(1)
    return mean


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
