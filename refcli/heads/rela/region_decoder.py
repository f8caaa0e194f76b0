"""ReLA's region decoder: each region of the image looks at the image, at the words and at the other regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.heads.shared.mlp import ThreeLayerMLP
from refcli.heads.shared.pixel_decoder import NUM_LEVELS, PixelMaps
from refcli.heads.shared.positions import sine_positions
from refcli.model.attention import scaled_attention

LANGUAGE_GAIN = 0.1
"""The published weight of the words, before the learned gate (which starts at a half)."""


class RegionAnswer(NamedTuple):
    """Logits of two classes each; the second is the foreground, and "no target"."""

    mask_logits: Float[Tensor, "batch 2 mask_rows mask_columns"]
    minimap_logits: Float[Tensor, "batch regions 2"]
    """Regions are the cells of a square grid over the image, row-major."""
    no_target_logits: Float[Tensor, "batch 2"]


class RegionDecoder(nn.Module):
    """Region-image and region-language cross attention (Liu et al., GRES, CVPR 2023), as in the published code.

    Not as in the paper's figure: the words come in once, in the first layer; region self-attention is in every layer.

    Args:
        dim: width of regions and maps.
        text_dim: width of the words.
        mask_dim: channels of the mask features.
        num_regions: cells of the grid.
        num_layers: of the decoder; layer i looks at level i mod 3, coarse first.
        heads: of every attention.
        ffn_dim: hidden width of the MLPs.
        mean_of_regions: divide the mask, a sum over the regions, by their number.
        pre_norm: see `RegionAttention`.
        how: see `scaled_attention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        text_dim: int,
        mask_dim: int,
        num_regions: int,
        num_layers: int,
        heads: int,
        ffn_dim: int,
        mean_of_regions: bool = False,
        pre_norm: bool,
        how: Literal["auto", "sdpa", "explicit"],
    ) -> None:
        super().__init__()
        self.share = 1 / num_regions if mean_of_regions else 1.0

        def attentions(number: int) -> nn.ModuleList:
            return nn.ModuleList(RegionAttention(dim, heads, pre_norm=pre_norm, how=how) for _ in range(number))

        self.region_queries = nn.Parameter(torch.randn(num_regions, dim))
        self.region_positions = nn.Parameter(torch.randn(num_regions, dim))
        self.level_embedding = nn.Parameter(torch.randn(NUM_LEVELS, dim))
        self.image_attentions, self.region_attentions = attentions(num_layers), attentions(num_layers)
        self.mlps = nn.ModuleList(RegionMLP(dim, ffn_dim, pre_norm=pre_norm) for _ in range(num_layers))
        self.language_projection = nn.Linear(text_dim, dim, bias=False)
        self.language_attention = RegionAttention(dim, heads, pre_norm=pre_norm, how=how)
        self.language_gate = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(dim)
        self.mask_filter = ThreeLayerMLP(dim, mask_dim)
        self.minimap = nn.Linear(dim, 2)
        self.no_target = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))

    def forward(
        self,
        maps: PixelMaps,
        text: Float[Tensor, "batch words text_dim"],
        word_is_open: Bool[Tensor, "batch 1 1 words"] | None,
    ) -> RegionAnswer:
        """Regions look only where their own mask of the layer before lies."""
        regions = self.region_queries.to(text.dtype).expand(text.shape[0], -1, -1)
        memories = self._memories(maps.levels)
        # A mask is linear in the features, so these are resized once, instead of every region's mask in every layer.
        small_features = [
            F.interpolate(maps.mask_features.detach(), size=each.shape[-2:], mode="bilinear", align_corners=False)
            for each in maps.levels
        ]
        words = self.language_projection(text)
        for layer, (image, among, mlp) in enumerate(
            zip(self.image_attentions, self.region_attentions, self.mlps, strict=True)
        ):
            level = layer % NUM_LEVELS
            is_open = places_inside(self._region_masks(regions, small_features[level]))
            regions = image(regions, memories[level]._replace(is_open=is_open), positions=self.region_positions)
            if layer == 0:
                spoken = self.language_attention(regions, Memory(words, words, word_is_open), positions=None)
                regions = regions + LANGUAGE_GAIN * self.language_gate.sigmoid() * spoken
            regions = mlp(among(regions, None, positions=self.region_positions))
        return self._read_out(regions, maps.mask_features)

    def _memories(self, levels: Sequence[Float[Tensor, "batch dim _ _"]]) -> list[Memory]:
        memories = []
        for level, each in enumerate(levels):
            values = each.flatten(2).transpose(1, 2) + self.level_embedding[level]
            positions = sine_positions((each.shape[2], each.shape[3]), each.shape[1], like=each)
            memories.append(Memory(values + positions, values, None))
        return memories

    def _region_masks(
        self, regions: Float[Tensor, "batch regions dim"], mask_features: Float[Tensor, "batch mask_dim rows columns"]
    ) -> Float[Tensor, "batch regions rows columns"]:
        """Mask logits of every region; they only say where it looks next.

        Detached afterwards, not under `no_grad`: there older releases of torch keep the weights that autocast rounds,
        and then train them nowhere.
        """
        return torch.einsum("bqc,bchw->bqhw", self.mask_filter(self.norm(regions)), mask_features).detach()

    def _read_out(
        self, regions: Float[Tensor, "batch regions dim"], mask_features: Float[Tensor, "batch mask_dim rows columns"]
    ) -> RegionAnswer:
        """The mask's filter is the sum (or mean) of the regions' filters, each weighted by its minimap logits."""
        normed = self.norm(regions)
        minimap = self.minimap(normed)
        filters = self.share * torch.einsum("bqa,bqc->bac", minimap, self.mask_filter(normed))
        masks = torch.einsum("bac,bchw->bahw", filters, mask_features)
        return RegionAnswer(masks, minimap, self.no_target(normed).mean(1))


class Memory(NamedTuple):
    """What regions look at."""

    keys: Float[Tensor, "batch places dim"]
    values: Float[Tensor, "batch places dim"]
    is_open: Bool[Tensor, "batch 1 regions_or_1 places"] | None
    """False at what a region must not see; every region sees something. None: everything is open."""


class RegionAttention(nn.Module):
    """LN(x + MHA(x + positions, keys, values)), or with pre-norm x + MHA(LN(x) + positions, keys, values).

    Args:
        dim: width of regions and memory.
        heads: of the attention.
        pre_norm: normalise what goes in instead of what comes out.
        how: see `scaled_attention`.
    """

    def __init__(self, dim: int, heads: int, *, pre_norm: bool, how: Literal["auto", "sdpa", "explicit"]) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.how: Literal["auto", "sdpa", "explicit"] = how
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "batch regions dim"],
        memory: Memory | None,
        *,
        positions: Float[Tensor, "regions dim"] | None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Attend to the memory, or (None) to the regions themselves, whose positions then mark the keys as well."""
        regions = self.norm(x) if self.pre_norm else x
        placed = regions if positions is None else regions + positions
        keys, values, is_open = memory or Memory(placed, regions, None)
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
            for tokens, weight, bias in zip((placed, keys, values), weights, biases, strict=True)
        )
        mixed = scaled_attention(query, key, value, is_open, how=self.how)
        summed: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return summed if self.pre_norm else self.norm(summed)


class RegionMLP(nn.Module):
    """LN(x + MLP(x)), or with pre-norm x + MLP(LN(x))."""

    def __init__(self, dim: int, hidden_dim: int, *, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions dim"]:
        """Change every region by itself."""
        summed: Tensor = x + self.mlp(self.norm(x) if self.pre_norm else x)
        return summed if self.pre_norm else self.norm(summed)


def places_inside(
    mask_logits: Float[Tensor, "batch regions mask_rows mask_columns"],
) -> Bool[Tensor, "batch 1 regions places"]:
    """Where each region's mask has a probability of a half or more; everywhere if that is nowhere."""
    inside = (mask_logits >= 0).flatten(2)
    return (inside | ~inside.any(-1, keepdim=True)).unsqueeze(1)
