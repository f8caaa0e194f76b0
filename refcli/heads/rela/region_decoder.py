"""ReLA's region decoder: each region of the image attends to the image, to the words and to the other regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.config.schema import AttentionImplementation
from refcli.heads.rela.pixel_decoder import NUM_LEVELS, PixelMaps, sine_positions
from refcli.heads.shared.layers import ThreeLayerMLP
from refcli.model.attention import scaled_attention

LANGUAGE_GAIN = 0.1
"""The published weight of the words, before the learned gate (which starts at a half)."""


class RegionLayerSettings(NamedTuple):
    """The settings shared by all layers of the region decoder."""

    dim: int
    """Width of regions and maps."""
    heads: int
    """Of every attention."""
    ffn_dim: int
    """Hidden width of the MLPs."""
    pre_norm: bool
    """Normalise the input of a layer instead of its output."""
    attention_implementation: AttentionImplementation
    """See `scaled_attention`."""


class RegionAnswer(NamedTuple):
    """Logits of two classes each; the second is the foreground, and "no target"."""

    mask_logits: Float[Tensor, "batch 2 mask_rows mask_columns"]
    minimap_logits: Float[Tensor, "batch regions 2"]
    """Regions are the cells of a square grid over the image, row-major."""
    no_target_logits: Float[Tensor, "batch 2"]


class RegionDecoder(nn.Module):
    """Region-image and region-language cross attention (Liu et al., GRES, CVPR 2023), as in the published code.

    Unlike in the paper's figure, the words enter once, in the first layer, and every layer has region self-attention.

    Args:
        layer: settings of every layer.
        num_layers: layer i attends to level i mod 3, coarse first.
        text_dim: width of the words.
        mask_dim: channels of the mask features.
        num_regions: cells of the grid.
        mean_of_regions: divide the mask, a sum over the regions, by their number.
    """

    def __init__(
        self,
        layer: RegionLayerSettings,
        *,
        num_layers: int,
        text_dim: int,
        mask_dim: int,
        num_regions: int,
        mean_of_regions: bool = False,
    ) -> None:
        super().__init__()
        self.share = 1 / num_regions if mean_of_regions else 1.0
        dim = layer.dim

        def attentions() -> nn.ModuleList:
            return nn.ModuleList(RegionAttention(layer) for _ in range(num_layers))

        self.region_queries = nn.Parameter(torch.randn(num_regions, dim))
        self.region_positions = nn.Parameter(torch.randn(num_regions, dim))
        self.level_embedding = nn.Parameter(torch.randn(NUM_LEVELS, dim))
        self.image_attentions, self.region_attentions = attentions(), attentions()
        self.mlps = nn.ModuleList(RegionMLP(layer) for _ in range(num_layers))
        self.language_projection = nn.Linear(text_dim, dim, bias=False)
        self.language_attention = RegionAttention(layer)
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
        """Decode; a region attends only to the places inside its own mask of the previous layer."""
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
                read = self.language_attention(regions, Memory(words, words, word_is_open), positions=None)
                regions = regions + LANGUAGE_GAIN * self.language_gate.sigmoid() * read
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
        """Mask logits of every region, which decide the places that it attends to next; no gradient flows through them.

        Detached at the end instead of computed under `no_grad`: older releases of torch cache weights that autocast
        rounds there, and then do not train them.
        """
        return torch.einsum("bqc,bchw->bqhw", self.mask_filter(self.norm(regions)), mask_features).detach()

    def _read_out(
        self, regions: Float[Tensor, "batch regions dim"], mask_features: Float[Tensor, "batch mask_dim rows columns"]
    ) -> RegionAnswer:
        """The filter of the mask is the sum (or mean) of the regions' filters, each weighted by its minimap logits."""
        normed = self.norm(regions)
        minimap = self.minimap(normed)
        filters = self.share * torch.einsum("bqa,bqc->bac", minimap, self.mask_filter(normed))
        masks = torch.einsum("bac,bchw->bahw", filters, mask_features)
        return RegionAnswer(masks, minimap, self.no_target(normed).mean(1))


class Memory(NamedTuple):
    """The keys and values that regions attend to."""

    keys: Float[Tensor, "batch places dim"]
    values: Float[Tensor, "batch places dim"]
    is_open: Bool[Tensor, "batch 1 regions_or_1 places"] | None
    """False at places that a region must not attend to; every region has an open place. None: all are open."""


class RegionAttention(nn.Module):
    """LN(x + MHA(x + positions, keys, values)), or with pre-norm x + MHA(LN(x) + positions, keys, values)."""

    def __init__(self, layer: RegionLayerSettings) -> None:
        super().__init__()
        self.heads, self.pre_norm = layer.heads, layer.pre_norm
        self.attention_implementation = layer.attention_implementation
        self.qkv = nn.Linear(layer.dim, 3 * layer.dim)
        self.out = nn.Linear(layer.dim, layer.dim)
        self.norm = nn.LayerNorm(layer.dim)

    def forward(
        self,
        x: Float[Tensor, "batch regions dim"],
        memory: Memory | None,
        *,
        positions: Float[Tensor, "regions dim"] | None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Attend to the memory, or (None) to the regions themselves, with positions added to the keys as well."""
        regions = self.norm(x) if self.pre_norm else x
        placed = regions if positions is None else regions + positions
        keys, values, is_open = memory or Memory(placed, regions, None)
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
            for tokens, weight, bias in zip((placed, keys, values), weights, biases, strict=True)
        )
        mixed = scaled_attention(query, key, value, is_open, attention_implementation=self.attention_implementation)
        summed: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return summed if self.pre_norm else self.norm(summed)


class RegionMLP(nn.Module):
    """LN(x + MLP(x)), or with pre-norm x + MLP(LN(x))."""

    def __init__(self, layer: RegionLayerSettings) -> None:
        super().__init__()
        self.pre_norm = layer.pre_norm
        self.mlp = nn.Sequential(nn.Linear(layer.dim, layer.ffn_dim), nn.ReLU(), nn.Linear(layer.ffn_dim, layer.dim))
        self.norm = nn.LayerNorm(layer.dim)

    def forward(self, x: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions dim"]:
        """Transform every region by itself."""
        summed: Tensor = x + self.mlp(self.norm(x) if self.pre_norm else x)
        return summed if self.pre_norm else self.norm(summed)


def places_inside(
    mask_logits: Float[Tensor, "batch regions mask_rows mask_columns"],
) -> Bool[Tensor, "batch 1 regions places"]:
    """Where each region's mask has a probability of a half or more; everywhere if there is no such place."""
    inside = (mask_logits >= 0).flatten(2)
    return (inside | ~inside.any(-1, keepdim=True)).unsqueeze(1)
