"""Targets of the semantic target-relation score (STS): how strongly each word is related to the referent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import SemanticTargetSettings
from refcli.contracts.batch import Batch
from refcli.grounder import Grounder
from refcli.heads.oneref.head import OneRefHead


class FrozenTower(nn.Module):
    """A frozen grounder as two encoders, one of images and one of words, as CLIP has them.

    The head's two projections map both to the space in which the tower's patches and expressions are compared.
    """

    def __init__(self, grounder: Grounder) -> None:
        super().__init__()
        assert isinstance(grounder.head, OneRefHead)
        self.tower = grounder.tower
        self.vision_projection = grounder.head.vision_projection
        self.language_projection = grounder.head.language_projection

    @torch.no_grad()
    def refresh(self, grounder: Grounder) -> None:
        """Copy the present weights of the model in training."""
        assert isinstance(grounder.head, OneRefHead)
        pairs = (
            (self.tower, grounder.tower),
            (self.vision_projection, grounder.head.vision_projection),
            (self.language_projection, grounder.head.language_projection),
        )
        for own, current in pairs:
            own.load_state_dict(current.state_dict())

    def image_class(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """e_CLS of images alone: unit vectors."""
        return F.normalize(self.vision_projection(self.tower.encode_images(images)[:, 0]).float(), dim=-1)

    def words(
        self, token_ids: Int[Tensor, "batch words"], token_is_pad: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words dim"]:
        """w_i of expressions alone: a unit vector for every word piece."""
        return F.normalize(self.language_projection(self.tower.encode_texts(token_ids, token_is_pad)).float(), dim=-1)


@torch.no_grad()
def score_words(
    model: FrozenTower, batch: Batch, word_counts: Bool[Tensor, "batch words"], settings: SemanticTargetSettings
) -> Float[Tensor, "batch words"]:
    """s_i = lambda_reg softmax(<e_CLS of the region, w_i>) + lambda_img softmax(<e_CLS of the image, w_i>).

    Args:
        model: compares images with words.
        batch: with unmasked expressions.
        word_counts: the word pieces that get a score; the others get 0.
    """
    regions = crop_regions(batch.images, batch.targets.boxes_cxcywh, batch.targets.exists)
    region_class, image_class = model.image_class(torch.cat([regions, batch.images])).chunk(2)
    words = model.words(batch.token_ids, batch.token_is_pad)
    return semantic_target_relation(region_class, image_class, words, word_counts, settings)


def crop_regions(
    images: Float[Tensor, "batch 3 height width"],
    boxes_cxcywh: Float[Tensor, "batch 4"],
    exists: Bool[Tensor, " batch"],
) -> Float[Tensor, "batch 3 height width"]:
    """The referred boxes, each resized bilinearly to the whole frame; the image itself without a referent.

    Args:
        boxes_cxcywh: divided by the frame's width and height.
    """
    whole = boxes_cxcywh.new_tensor([0.5, 0.5, 1.0, 1.0])
    rows, columns = images.shape[-2:]
    cx, cy, width, height = torch.where(exists.unsqueeze(1), boxes_cxcywh, whole)[:, :, None, None].unbind(1)
    x = cx + width * ((torch.arange(columns).to(boxes_cxcywh) + 0.5) / columns - 0.5)
    y = cy + height * ((torch.arange(rows).to(boxes_cxcywh) + 0.5).unsqueeze(1) / rows - 0.5)
    points = 2 * torch.stack([x.expand(-1, rows, -1), y.expand(-1, -1, columns)], dim=-1) - 1
    return F.grid_sample(images, points, mode="bilinear", padding_mode="border", align_corners=False)


def semantic_target_relation(
    region_cls: Float[Tensor, "batch dim"],
    image_cls: Float[Tensor, "batch dim"],
    words: Float[Tensor, "batch words dim"],
    word_counts: Bool[Tensor, "batch words"],
    settings: SemanticTargetSettings,
) -> Float[Tensor, "batch words"]:
    """The relation of each word to the region and the image (OneRef section 3.2, STS); sums to 1 over the words.

    s = (lambda_reg softmax(scale <e_reg, w>) + lambda_img softmax(scale <e_img, w>)) / (lambda_reg + lambda_img), where
    the products are cosines.

    Args:
        region_cls: class vector of the referred region's crop.
        image_cls: class vector of the whole image.
        words: vectors of the words.
        word_counts: words that take part; the others get 0.
        settings: lambdas, not both 0, and scale.
    """
    images = F.normalize(torch.stack([region_cls, image_cls], dim=1).float(), dim=-1)
    cosines = (images.unsqueeze(2) * F.normalize(words.float(), dim=-1).unsqueeze(1)).sum(-1)
    shares = (settings.scale * cosines).masked_fill(~word_counts.unsqueeze(1), -torch.inf).softmax(-1)
    weights = shares.new_tensor([settings.region_weight, settings.image_weight])
    return (shares * (weights / weights.sum()).unsqueeze(1)).sum(1).masked_fill(~word_counts, 0.0)
