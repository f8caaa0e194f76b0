"""Training of a visual tokenizer: codes from which a decoder can reconstruct the patches of an image."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import VisualTokenizerSettings, VisualTokenizerTrainingSettings
from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Batch
from refcli.errors import ConfigError
from refcli.model.visual_tokenizer import TokenizerBlock, VisualTokenizer, nearest_codes
from refcli.pretraining.visual_codes import cut_patches, visual_pixels

GRACE = 2.0
"""The usage of a revived code starts at this many times the threshold: while it stays unused, it is revived again after
ln(2) / (1 - decay) steps."""


class PatchDecoder(nn.Module):
    """Codes -> pixels: a small transformer over the patches of an image."""

    def __init__(self, sizes: VisualTokenizerSettings, layers: int) -> None:
        super().__init__()
        rows, columns = sizes.grid
        self.embedding = nn.Linear(sizes.code_dim, sizes.dim)
        self.positions = nn.Parameter(torch.zeros(1, rows * columns, sizes.dim))
        self.blocks = nn.ModuleList(TokenizerBlock(sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(sizes.dim, eps=sizes.layer_norm_eps)
        self.pixels = nn.Linear(sizes.dim, 3 * sizes.patch_size**2)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, codes: Float[Tensor, "batch patches code_dim"]) -> Float[Tensor, "batch patches patch_values"]:
        """The pixels in 0..1 of every patch, as `cut_patches` orders them."""
        tokens: Tensor = self.embedding(codes) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        pixels: Tensor = self.pixels(self.norm(tokens))
        return pixels


class VisualTokenizerTraining(nn.Module):
    """An Objective that trains a `VisualTokenizer` with unit-length codes (BEiT v2 section 2.2), from pixels alone.

    Instead of VQ-KD's teacher, the image itself is the target: a decoder reconstructs the pixels of every patch. The
    gradient of choosing a code is straight-through. Codes are not parameters but moving averages of the vectors that
    chose them, over all processes.

    Args:
        settings: sizes, and how the codebook is updated.
        tower: gives the size of the images.

    Raises:
        ConfigError: the images do not have the size of the tokenizer's positions.
    """

    has_static_graph = True
    """Every step trains the same parameters."""
    usage: Float[Tensor, " codes"]
    """Moving average of the number of patches per step, of all processes, that chose each code."""

    def __init__(self, settings: VisualTokenizerTrainingSettings, tower: TowerSettings) -> None:
        super().__init__()
        side = settings.sizes.image_size
        if tower.image_size != (side, side):
            raise ConfigError(
                f"the images have {tower.image_size} pixels, but the visual tokenizer is for {(side, side)}",
                where="model.tower.image_size",
                hint="make it the same as visual_tokenizer.sizes.image_size",
            )
        self.settings = settings
        self.tokenizer = VisualTokenizer(settings.sizes)
        self.decoder = PatchDecoder(settings.sizes, settings.decoder_layers)
        self.register_buffer("usage", torch.zeros(settings.sizes.num_codes))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """`reconstruction`: mean squared error of the pixels; `commitment`: squared distance of vectors and codes.

        In training mode, the codebook is updated as well. The moving averages start with the batch of step 0.
        """
        pixels = visual_pixels(batch.images)
        vectors = F.normalize(self.tokenizer.code_vectors(pixels).float(), dim=-1)
        with torch.autocast(pixels.device.type, enabled=False):
            ids = nearest_codes(vectors.detach(), self.tokenizer.codebook)
        codes = self.tokenizer.codebook[ids]
        reconstructed = self.decoder(vectors + (codes - vectors).detach())
        if self.training:
            self._update_codebook(vectors.detach().flatten(0, 1), ids.flatten(), decay=self._decay(step))
        return {
            "reconstruction": F.mse_loss(reconstructed.float(), cut_patches(pixels, self.settings.sizes.patch_size)),
            "commitment": self.settings.commitment * (vectors - codes).square().sum(-1).mean(),
        }

    def metrics(self) -> dict[str, Tensor]:
        """`code_perplexity`: e to the entropy of the usage; the number of codes if all are used equally often."""
        shares = self.usage / self.usage.sum()
        return {"code_perplexity": torch.special.entr(shares).sum().exp()}

    def _decay(self, step: int) -> float:
        return self.settings.codebook_decay if step > 0 else 0.0

    @torch.no_grad()
    def _update_codebook(
        self, vectors: Float[Tensor, "patches code_dim"], ids: Int[Tensor, " patches"], *, decay: float
    ) -> None:
        """Move every code towards the mean direction of the vectors that chose it; revive idle ones at some vector."""
        codebook = self.tokenizer.codebook
        sums = vectors.new_zeros(len(codebook), vectors.shape[1] + 1)
        sums.index_add_(0, ids, F.pad(vectors, (0, 1), value=1.0))  # the last column counts the vectors
        places = vectors[torch.randint(len(vectors), (len(codebook),), device=vectors.device)]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.broadcast(places, src=0)
        means, counts = F.normalize(sums[:, :-1], dim=-1), sums[:, -1]
        moved = F.normalize(torch.lerp(means, codebook, decay), dim=-1)
        moved = torch.where(counts[:, None] > 0, moved, codebook)
        usage = torch.lerp(counts, self.usage, decay)
        is_idle = usage < self.settings.revive_below
        codebook.copy_(torch.where(is_idle[:, None], places, moved))
        self.usage.copy_(usage.masked_fill(is_idle, GRACE * self.settings.revive_below))
