"""CGFormer's consecutive decoder: fuse maps, load words into tokens and group places, from the coarsest map up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.heads.cgformer.grouping import Grouped, Grouping, Noise, TokenMLP
from refcli.heads.shared.simple_pyramid import PyramidMaps

FACTORS = (1, 2, 4)
"""Resolution of the three levels' maps, in grids of patches."""
TOKEN_STD = 0.02


class Fusion(nn.Sequential):
    """[3x3 convolution, BatchNorm, ReLU] twice on the two maps side by side."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )


class Load(nn.Module):
    """Load words into tokens: the referent token attends to the words, then every token passes an MLP.

    One attention head; only the output projection has a bias; dropout on the attention weights and on the output.
    """

    def __init__(self, dim: int, text_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.text_norm = nn.LayerNorm(text_dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(text_dim, dim, bias=False)
        self.value = nn.Linear(text_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.mlp = TokenMLP(dim, dropout=0.0)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        text: Float[Tensor, "batch words text_dim"],
        word_is_pad: Bool[Tensor, "batch words"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The loaded tokens."""
        others, referent = tokens[:, :-1], tokens[:, -1:]
        text = self.text_norm(text)
        query, key, value = self.query(self.token_norm(referent)), self.key(text), self.value(text)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
        weights = scores.float().masked_fill(word_is_pad[:, None], -torch.inf).softmax(-1).to(value.dtype)
        referent = referent + self.out(self.dropout(weights) @ value)
        loaded: Tensor = self.mlp(torch.cat([others, referent.to(others.dtype)], 1))
        return loaded


class Level(nn.Module):
    """Fusion of the running map with a lateral one, positions, and (except on the first level) loading of words."""

    def __init__(self, in_dim: int, dim: int, grid: tuple[int, int], load: Load | None) -> None:
        super().__init__()
        self.grid = grid
        self.fusion = Fusion(in_dim, dim)
        self.positions = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * dim**-0.5)
        self.load = load

    def fuse(
        self, running: Float[Tensor, "batch dim rows columns"], lateral: Float[Tensor, "batch dim2 rows2 columns2"]
    ) -> Float[Tensor, "batch dim3 rows2 columns2"]:
        """Resize the running map to the lateral one and fuse both."""
        running = F.interpolate(running, size=lateral.shape[-2:], mode="bilinear", align_corners=True)
        fused: Tensor = self.fusion(torch.cat([running, lateral.to(running.dtype)], 1))
        return fused

    def positions_on(self, grid: tuple[int, int]) -> Float[Tensor, "places dim"]:
        """The position table, row-major; resampled (bicubic, in float32) for maps of another size."""
        if grid == self.grid:
            return self.positions
        table = self.positions.float().reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return table[0].permute(1, 2, 0).flatten(0, 1).to(self.positions.dtype)


@dataclass(frozen=True)
class Decoded:
    """The output of the decoder."""

    maps: Float[Tensor, "batch dim rows columns"]
    """At four times the grid."""
    tokens: Float[Tensor, "batch tokens dim"]
    """The last one is the referent."""
    levels: tuple[Grouped, ...]
    grids: tuple[tuple[int, int], ...]
    """(rows, columns) of each level's places."""


class ConsecutiveDecoder(nn.Module):
    """Three levels; the second and the third share one grouping (CGFormer, consecutive decoder).

    Args:
        dim: width of tokens and maps.
        channels: of the pyramid's maps, finest first.
        text_dim: width of the words.
        grid: (rows, columns) of patches of the position tables.
        num_tokens: query tokens; the last is the referent.
        dropout: in the attention's projections and the groupings' MLP.
        noise, published_temperature: see `Grouping`.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: Sequence[int],
        text_dim: int,
        grid: tuple[int, int],
        num_tokens: int,
        dropout: float,
        noise: Noise,
        published_temperature: bool,
    ) -> None:
        super().__init__()
        finest, fine, coarse, coarsest = channels
        self.tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, dim), std=TOKEN_STD))
        self.levels = nn.ModuleList(
            Level(
                in_dim,
                dim,
                (factor * grid[0], factor * grid[1]),
                Load(dim, text_dim, dropout=dropout) if factor > 1 else None,
            )
            for factor, in_dim in zip(FACTORS, (coarsest + coarse, dim + fine, dim + finest), strict=True)
        )
        self.groupings = nn.ModuleList(
            Grouping(dim, dropout=dropout, noise=noise, published_temperature=published_temperature) for _ in range(2)
        )

    def forward(
        self,
        pyramid: PyramidMaps,
        text: Float[Tensor, "batch words text_dim"],
        token_is_pad: Bool[Tensor, "batch words"],
    ) -> Decoded:
        """Decode the pyramid with the words of an expression."""
        maps, tokens = pyramid.stride32, self.tokens.expand(text.shape[0], -1, -1)
        groups: list[Grouped] = []
        first, second = self.groupings
        laterals = (pyramid.stride16, pyramid.stride8, pyramid.stride4)
        for level, grouping, lateral in zip(self.levels, (first, second, second), laterals, strict=True):
            assert isinstance(level, Level)
            maps = level.fuse(maps, lateral)
            if level.load is not None:
                tokens = level.load(tokens, text, token_is_pad)
            grid = (maps.shape[2], maps.shape[3])
            places = maps.flatten(2).transpose(1, 2)
            groups.append(grouping(tokens, places + level.positions_on(grid).to(places.dtype)))
            tokens = groups[-1].tokens
        grids = tuple((lateral.shape[2], lateral.shape[3]) for lateral in laterals)
        return Decoded(maps, tokens, tuple(groups), grids)
