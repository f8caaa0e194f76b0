"""The input of a training or inference step: images, words and truth as tensors in the model frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """The referred regions of a batch one by one, in the model frame; padded to the largest number of a sample."""

    boxes_cxcywh: Float[Tensor, "batch regions 4"]
    """(centre x, centre y, width, height) divided by the model frame's width and height."""
    masks: Bool[Tensor, "batch regions height width"]
    is_real: Bool[Tensor, "batch regions"]
    """False on padding."""
    mask_is_known: Bool[Tensor, "batch regions"]
    """False where the data set has only a box; the mask is then the filled box."""
    are_separate: Bool[Tensor, " batch"]
    """False where one region may stand for several objects (a union mask, a box around a group): the sample then
    trains no instance."""

    def to(self, device: str | torch.device) -> Regions:
        """The regions on another device."""
        return Regions(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    def first(self, count: int) -> Regions:
        """The regions of the first samples."""
        return Regions(*(getattr(self, name)[:count] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Targets:
    """The truth of a batch in the model frame.

    Samples without a referent have `exists == False`, an all-False mask and a zero box.
    Several referents of one expression become one: the box encloses all of them, the mask is their union.
    """

    boxes_cxcywh: Float[Tensor, "batch 4"]
    """(centre x, centre y, width, height) divided by the model frame's width and height."""
    masks: Bool[Tensor, "batch height width"]
    """Union of the referred pixels in the model frame."""
    mask_is_known: Bool[Tensor, " batch"]
    """False where the data set has only boxes; the mask is then the filled box."""
    exists: Bool[Tensor, " batch"]
    regions: Regions | None = None
    """For heads that distinguish the referents (`Head.reads_regions`)."""

    def to(self, device: str | torch.device) -> Targets:
        """The targets on another device."""
        tensors = (self.boxes_cxcywh, self.masks, self.mask_is_known, self.exists)
        regions = None if self.regions is None else self.regions.to(device)
        boxes, masks, known, exists = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Targets(boxes, masks, known, exists, regions)

    def first(self, count: int) -> Targets:
        """The targets of the first samples."""
        tensors = (self.boxes_cxcywh, self.masks, self.mask_is_known, self.exists)
        regions = None if self.regions is None else self.regions.first(count)
        boxes, masks, known, exists = (tensor[:count] for tensor in tensors)
        return Targets(boxes, masks, known, exists, regions)


@dataclass(frozen=True)
class Batch:
    """A batch of (image, expression) pairs."""

    images: Float[Tensor, "batch 3 height width"]
    token_ids: Int[Tensor, "batch words"]
    token_is_pad: Bool[Tensor, "batch words"]
    targets: Targets
    ids: tuple[str, ...]
    word_roles: Int[Tensor, "batch words"] | None = None
    """For pre-training: 1 at the word pieces of the expression's subject, 2 at those of its object, else 0."""

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device."""
        return Batch(
            images=self.images.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
            token_is_pad=self.token_is_pad.to(device, non_blocking=True),
            targets=self.targets.to(device),
            ids=self.ids,
            word_roles=None if self.word_roles is None else self.word_roles.to(device, non_blocking=True),
        )
