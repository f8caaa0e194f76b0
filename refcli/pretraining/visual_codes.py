"""Targets of masked image modelling: the code of every patch in a visual vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import VisualCodeSettings
from refcli.config.schema import TowerSettings
from refcli.data.training.transforms import IMAGE_MEAN, IMAGE_STD
from refcli.errors import ConfigError
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.tables import lookup
from refcli.weights.tokenizers import load_visual_tokenizer

WEIGHTS_KEY = "mrefm.visual_codes.weights"
PROVIDERS: dict[str, str] = {
    "tokenizer": "refcli.pretraining.visual_codes:TokenizerCodes",
    "pixel_clusters": "refcli.pretraining.pixel_clusters:PixelClusters",
}
"""Each row is a subclass of `VisualCodes`."""


def visual_pixels(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """The pixels of normalised images: RGB in 0..1 (float32), with black padding as for the official tokenizer.

    Padding is 0 in all three channels, and no pixel is: 255 times the mean is not an integer in any channel, so none of
    the 256 levels is normalised to 0.
    """
    mean, std = (images.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    is_padding = (images == 0).all(1, keepdim=True)
    return (images.float() * std + mean).clamp(0, 1).masked_fill(is_padding, 0.0)


def cut_patches(
    pixels: Float[Tensor, "batch 3 height width"], patch_size: int
) -> Float[Tensor, "batch patches patch_values"]:
    """The values of every patch, row-major over the grid; inside a patch by channel, row and column."""
    return F.unfold(pixels, patch_size, stride=patch_size).transpose(1, 2)


class VisualCodes(nn.Module, ABC):
    """A fixed visual vocabulary of patches."""

    num_codes: int

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: VisualCodeSettings, tower: TowerSettings) -> VisualCodes:
        """Build for the grid of `tower`.

        Raises:
            RefcliError: settings that do not fit, or weights that cannot be read.
        """

    @abstractmethod
    def ids_of_pixels(self, pixels: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """Like `code_ids`, from RGB in 0..1 with black padding."""

    @torch.no_grad()
    def code_ids(self, images: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """The id, in 0..num_codes - 1, of every patch of the tower's grid, row-major.

        Computed in float32, also inside autocast, since bfloat16 would change ids.

        Args:
            images: normalised, in the model frame, padding 0, as for the tower.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.ids_of_pixels(visual_pixels(images))


class TokenizerCodes(VisualCodes):
    """The codes of a frozen VQ-KD tokenizer (OneRef section 3.2; BEiT v2).

    Where its patches have another size than the tower's, the image is resized so that both grids are equal.
    """

    def __init__(self, tokenizer: VisualTokenizer, tower: TowerSettings) -> None:
        super().__init__()
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.num_codes = tokenizer.settings.num_codes
        rows, columns = tower.grid
        self.size = (rows * tokenizer.settings.patch_size, columns * tokenizer.settings.patch_size)

    @classmethod
    def from_settings(cls, settings: VisualCodeSettings, tower: TowerSettings) -> TokenizerCodes:
        """Read the tokenizer that `settings.weights` names."""
        if settings.weights is None:
            raise ConfigError(
                "no visual tokenizer is given",
                where=WEIGHTS_KEY,
                hint="a directory or catalogue name (vqkd is the published one); mrefm.visual_codes.source="
                "pixel_clusters needs none",
            )
        return cls(load_visual_tokenizer(settings.weights), tower)

    def ids_of_pixels(self, pixels: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """The tokenizer's ids, on the tower's grid."""
        if tuple(pixels.shape[2:]) != self.size:
            resized = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
            pixels = resized.clamp(0, 1)  # rounding above 1 would make the tokenizer read the batch as 0..255
        return self.tokenizer.code_ids(pixels)


def build_visual_codes(
    settings: VisualCodeSettings, tower: TowerSettings, *, device: torch.device | str
) -> VisualCodes:
    """The provider that `settings.source` names; `pixel_clusters` has to be fitted afterwards.

    Raises:
        ConfigError: settings that do not fit.
        WeightsError: the weights of the tokenizer are missing, damaged or of another kind.
    """
    provider: type[VisualCodes] = lookup(PROVIDERS, settings.source, what="source of visual codes")
    return provider.from_settings(settings, tower).to(device)
