"""Who says how much each word of an expression has to do with the referent (targets of STS)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import SemanticTargetSettings
from refcli.contracts.batch import Batch
from refcli.grounder import Grounder
from refcli.heads.oneref.head import OneRefHead
from refcli.pretraining.target_relation import crop_regions, semantic_target_relation


class ImageWordModel(Protocol):
    """Two encoders into one space, as CLIP has them."""

    def image_class(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of whole pictures."""

    def words(
        self, token_ids: Int[Tensor, "batch words"], token_is_pad: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words dim"]:
        """Unit vectors of every word piece in its expression."""


class FrozenTower(nn.Module):
    """A grounder that no longer changes, used as two encoders: its image experts and its word experts apart.

    The head's two projections take both into the space in which the tower's patches and expressions are compared.
    """

    def __init__(self, grounder: Grounder) -> None:
        super().__init__()
        assert isinstance(grounder.head, OneRefHead)
        self.tower = grounder.tower
        self.vision_projection = grounder.head.vision_projection
        self.language_projection = grounder.head.language_projection

    @torch.no_grad()
    def refresh(self, grounder: Grounder) -> None:
        """Take over the present weights of the model that is being trained."""
        assert isinstance(grounder.head, OneRefHead)
        pairs = (
            (self.tower, grounder.tower),
            (self.vision_projection, grounder.head.vision_projection),
            (self.language_projection, grounder.head.language_projection),
        )
        for mine, current in pairs:
            mine.load_state_dict(current.state_dict())

    def image_class(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """e_CLS of pictures alone."""
        return F.normalize(self.vision_projection(self.tower.encode_images(images)[:, 0]).float(), dim=-1)

    def words(
        self, token_ids: Int[Tensor, "batch words"], token_is_pad: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words dim"]:
        """w_i of expressions alone."""
        return F.normalize(self.language_projection(self.tower.encode_texts(token_ids, token_is_pad)).float(), dim=-1)


@torch.no_grad()
def score_words(
    model: ImageWordModel, batch: Batch, word_counts: Bool[Tensor, "batch words"], settings: SemanticTargetSettings
) -> Float[Tensor, "batch words"]:
    """s_i = lambda_reg softmax(<e_CLS of the region, w_i>) + lambda_img softmax(<e_CLS of the image, w_i>).

    Args:
        model: compares pictures with words.
        batch: with its expressions unmasked.
        word_counts: the pieces that get a score; the rest gets 0.
    """
    regions = crop_regions(batch.images, batch.targets.boxes_cxcywh, batch.targets.exists)
    region_class, image_class = model.image_class(torch.cat([regions, batch.images])).chunk(2)
    words = model.words(batch.token_ids, batch.token_is_pad)
    return semantic_target_relation(region_class, image_class, words, word_counts, settings)
