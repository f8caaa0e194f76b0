"""Visual codes without a trained tokenizer: the nearest of the mean patches that k-means finds in the images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refcli.config.pretraining import VisualCodeSettings
from refcli.config.schema import TowerSettings
from refcli.errors import ConfigError
from refcli.model.visual_tokenizer import nearest_codes
from refcli.pretraining.visual_codes import WEIGHTS_KEY, VisualCodes, cut_patches, visual_pixels

PATCHES_PER_CODE = 64
"""Patches per mean that k-means is fitted to (it needs a few dozen; faiss warns below 39)."""
PATCHES_PER_IMAGE = 16
"""At most this many of them come from one image."""
MAX_ROUNDS = 25
"""Maximum rounds of k-means, which ends earlier when the means no longer change."""
PATCHES_AT_ONCE = 16384
"""Patches whose distances to all means are in memory at a time."""


class PixelClusters(VisualCodes):
    """k-means over the pixels of patches. The means are part of the state, so a resumed run has the same codes."""

    means: Float[Tensor, "codes patch_values"]
    is_fitted: Bool[Tensor, ""]
    """False until `fit` ran, or until a fitted state was loaded."""

    def __init__(self, num_codes: int, patch_size: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.patch_size = patch_size
        self.register_buffer("means", torch.zeros(num_codes, 3 * patch_size**2))
        self.register_buffer("is_fitted", torch.tensor(False))

    @classmethod
    def from_settings(cls, settings: VisualCodeSettings, tower: TowerSettings) -> PixelClusters:
        """Clusters of the tower's own patches, not yet fitted."""
        if settings.weights is not None:
            raise ConfigError(
                "pixel clusters have no weights",
                where=WEIGHTS_KEY,
                hint="leave it out, or set mrefm.visual_codes.source=tokenizer",
            )
        return cls(settings.num_codes, tower.patch_size)

    @torch.no_grad()
    def fit(self, images: Iterable[Float[Tensor, "batch 3 height width"]], *, seed: int) -> None:
        """Find the means in the first images.

        The same images and seed give the same means, bit for bit on one machine only: among several processes, one has
        to fit and the others load its state.

        Args:
            images: batches of normalised model-frame images, endless or not. `PATCHES_PER_IMAGE` random patches of each
                image are sampled, until there are `PATCHES_PER_CODE` for every code.
            seed: of the sampled patches and of the means that k-means starts from.
        """
        generator = torch.Generator(self.means.device).manual_seed(seed)
        self.means.copy_(k_means(self._sample(images, generator), self.num_codes, generator=generator))
        self.is_fitted.fill_(True)

    def ids_of_pixels(self, pixels: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """The mean nearest to every patch."""
        if not self.is_fitted:
            raise RuntimeError("pixel clusters have no codes before they are fitted")
        return nearest_codes(cut_patches(pixels, self.patch_size), self.means)

    def _sample(self, batches: Iterable[Tensor], generator: torch.Generator) -> Float[Tensor, "patches patch_values"]:
        sampled: list[Tensor] = []
        for images in batches:
            patches = cut_patches(visual_pixels(images.to(self.means.device)), self.patch_size)
            order = torch.rand(patches.shape[:2], generator=generator, device=patches.device).argsort(1)
            rows = torch.arange(len(patches), device=patches.device)[:, None]
            sampled.append(patches[rows, order[:, :PATCHES_PER_IMAGE]].flatten(0, 1))
            if sum(map(len, sampled)) >= PATCHES_PER_CODE * self.num_codes:
                break
        return torch.cat(sampled)


def k_means(
    vectors: Float[Tensor, "vectors dim"], num_means: int, *, generator: torch.Generator
) -> Float[Tensor, "means dim"]:
    """Lloyd's algorithm from a k-means++ start; a mean without vectors moves to a vector far from its own mean.

    With fewer different vectors than means, some means are equal, and only the first of them is ever the nearest.
    """
    means = spread_start(vectors, num_means, generator=generator)
    for _ in range(MAX_ROUNDS):
        ids = torch.cat([nearest_codes(part, means) for part in torch.split(vectors, PATCHES_AT_ONCE)])
        counts = ids.bincount(minlength=num_means)
        moved = torch.zeros_like(means).index_add_(0, ids, vectors) / counts.clamp(min=1)[:, None]
        is_empty = counts == 0
        farthest = (vectors - means[ids]).square().sum(-1).argsort(descending=True)
        moved[is_empty] = vectors[farthest[torch.arange(int(is_empty.sum()), device=farthest.device) % len(vectors)]]
        if torch.equal(moved, means):
            break
        means = moved
    return means


def spread_start(
    vectors: Float[Tensor, "vectors dim"], num_means: int, *, generator: torch.Generator
) -> Float[Tensor, "means dim"]:
    """Initial means far from each other (k-means++; Arthur and Vassilvitskii 2007).

    The first is any vector; each further one is drawn with a probability proportional to its squared distance from the
    nearest one so far.
    """
    means = vectors.new_empty(num_means, vectors.shape[1])
    squared = vectors.new_ones(len(vectors))
    for number in range(num_means):
        # Once every vector has been chosen, all are equally likely.
        drawn = torch.multinomial(squared + (squared.sum() == 0), 1, generator=generator)
        means[number] = vectors[drawn[0]]
        # Without matrix products, whose rounding would give a vector a distance above 0 from itself.
        apart = torch.cdist(vectors, vectors[drawn], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1).square()
        squared = apart if number == 0 else torch.minimum(squared, apart)
    return means
