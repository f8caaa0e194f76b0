"""FLOPs of the tower, counted from its sizes and the shapes of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Batch
from refcli.model.beit3 import OneTower

BACKWARD_FACTOR = 2
"""The backward pass has two products per product of the forward pass: gradients of the inputs and of the weights."""


@dataclass(frozen=True)
class Work:
    """Tokens and FLOPs of training on some batches, independent of the machine."""

    num_tokens: int = 0
    """Class tokens, patches and words; padding is not counted."""
    flops: float = 0.0
    """Model FLOPs: two per multiply-add of the tower's and the head's products. Norms, activation functions, models
    that only compute targets, and recomputation by activation checkpointing are not counted."""

    def __add__(self, other: Work) -> Work:
        return Work(self.num_tokens + other.num_tokens, self.flops + other.flops)


def forward_flops(tower: TowerSettings, *, num_patches: int, num_words: int) -> int:
    """FLOPs of the tower's forward pass for one image and one expression; `num_words` counts padding as well.

    A block has 4 dim^2 weights in attention's projections and 2 dim ffn_dim in its feed-forward network, each used once
    per token; scores and weighted sums are tokens^2 dim multiply-adds each.
    """
    tokens = 1 + num_patches + num_words
    projections = tokens * (4 * tower.dim**2 + 2 * tower.dim * tower.ffn_dim)
    attention = 2 * tokens**2 * tower.dim
    embedding = num_patches * 3 * tower.patch_size**2 * tower.dim
    return 2 * (embedding + tower.layers * (projections + attention))


def training_work(tower: OneTower, batch: Batch, *, passes: int = 1) -> Work:
    """Tokens and FLOPs of a training step on `batch`: forward and backward, or forward alone for a frozen tower.

    Args:
        passes: forward passes of the tower per step.
    """
    settings = tower.settings
    pairs, _, height, width = batch.images.shape
    num_patches = (height // settings.patch_size) * (width // settings.patch_size)
    flops = pairs * forward_flops(settings, num_patches=num_patches, num_words=batch.token_ids.shape[1])
    is_trained = any(parameter.requires_grad for parameter in tower.parameters())
    return Work(
        num_tokens=pairs * (1 + num_patches) + int((~batch.token_is_pad).sum()),
        flops=float(passes * flops * (1 + BACKWARD_FACTOR if is_trained else 1)),
    )
