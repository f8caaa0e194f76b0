"""The queries of the instances head: what is read from each, and the layers that refine them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refcli.config.schema import AttentionImplementation
from refcli.heads.instances.seeds import Seeds
from refcli.heads.shared.layers import ThreeLayerMLP
from refcli.model.attention import scaled_attention

DEAD_LOGIT = -20.0
"""Score of a query without a seed."""
INITIAL_SIDE_LOGIT = -2.0
"""Start value of the logit of a box's sides, 0.12 of the model frame (InstanceVG)."""
EDGE = 1e-3
"""Coordinates are kept this far from 0 and 1 before the inverse of the sigmoid."""
LEAST_SIDE = 1e-3
"""Of a box, in fractions of the frame, where distances are measured in it."""
LOWEST_PRIOR = -4.0
"""The box term of a mask outside the box."""
TEMPERATURE = 10_000.0
"""Of the sine positions (DETR)."""
INSIDE = 0.0
"""A query attends to the patches whose mask logit is above this (Mask2Former: probability 0.5)."""


class QueryStage(NamedTuple):
    """What is read from the queries before the first layer, or after a layer."""

    score_logits: Float[Tensor, "batch queries"]
    """That the query is a referred object; the logit of its seed is part of it."""
    boxes_cxcywh: Float[Tensor, "batch queries 4"]
    """In fractions of the model frame."""
    mask_vectors: Float[Tensor, "batch queries mask_dim"]
    coarse_mask_logits: Float[Tensor, "batch queries patches"]
    """The masks at the resolution of the patches."""


class ReadOut(nn.Module):
    """Score, box and mask vector of every query; the same weights read every stage."""

    def __init__(self, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)
        self.box = ThreeLayerMLP(dim, 4)
        self.size = nn.Parameter(torch.full((2,), INITIAL_SIDE_LOGIT))
        self.mask = ThreeLayerMLP(dim, mask_dim)

    def first_box_logits(self, points: Float[Tensor, "batch queries 2"]) -> Float[Tensor, "batch queries 4"]:
        """The logits that the first boxes are measured from: at the seed, of the learned size."""
        return torch.cat((_logit(points), self.size.expand_as(points)), -1)

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        seeds: Seeds,
        reference_logits: Float[Tensor, "batch queries 4"],
    ) -> tuple[
        Float[Tensor, "batch queries"], Float[Tensor, "batch queries 4"], Float[Tensor, "batch queries mask_dim"]
    ]:
        """(score logits, boxes, mask vectors); a box is measured from its reference (DAB-DETR)."""
        normed = self.norm(queries)
        score = self.score(normed).squeeze(-1).float() + seeds.logits
        boxes = (self.box(normed).float() + reference_logits).sigmoid()
        return torch.where(seeds.are_alive, score, score.new_tensor(DEAD_LOGIT)), boxes, self.mask(normed)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to any tokens, with normalised queries and a residual connection."""

    def __init__(self, dim: int, heads: int, attention_implementation: AttentionImplementation) -> None:
        super().__init__()
        self.heads = heads
        self.attention_implementation: AttentionImplementation = attention_implementation
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        places: Float[Tensor, "batch queries dim"],
        tokens: Float[Tensor, "batch tokens dim"] | None,
        is_open: Bool[Tensor, "batch 1 #queries tokens"],
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend to the open tokens; without tokens, the queries attend to one another."""
        own = self.norm(queries)
        keys, values = (own + places, own) if tokens is None else (tokens, tokens)
        mixed = scaled_attention(
            self._parted(self.query(own + places)),
            self._parted(self.key(keys)),
            self._parted(self.value(values)),
            is_open,
            attention_implementation=self.attention_implementation,
        )
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return queries + attended

    def _parted(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class QueryLayer(nn.Module):
    """Attention to the patches inside the query's own mask (Mask2Former), to the words, among the queries; an MLP."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, attention_implementation: AttentionImplementation) -> None:
        super().__init__()
        self.to_patches, self.to_words, self.among = (
            CrossAttention(dim, heads, attention_implementation) for _ in range(3)
        )
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        places: Float[Tensor, "batch queries dim"],
        tokens: DecoderTokens,
        patch_is_open: Bool[Tensor, "batch 1 queries patches"],
    ) -> Float[Tensor, "batch queries dim"]:
        """One layer; `places` are the embedded boxes of the queries."""
        queries = self.to_patches(queries, places, tokens.patches, patch_is_open)
        queries = self.to_words(queries, places, tokens.words, tokens.word_is_open)
        queries = self.among(queries, places, None, tokens.query_is_open)
        changed: Tensor = self.mlp(self.norm(queries))
        return queries + changed


class DecoderTokens(NamedTuple):
    """Everything that queries attend to."""

    patches: Float[Tensor, "batch patches dim"]
    words: Float[Tensor, "batch words dim"]
    word_is_open: Bool[Tensor, "batch 1 1 words"]
    query_is_open: Bool[Tensor, "batch 1 1 queries"]


class BoxEmbedding(nn.Module):
    """A vector for the place and size of a box: sines of its four numbers, and an MLP (DAB-DETR)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_frequencies = dim // 4
        self.mlp = nn.Sequential(nn.Linear(8 * self.num_frequencies, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(
        self, boxes_cxcywh: Float[Tensor, "batch queries 4"], *, like: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """Embed boxes (fractions of the frame), in the data type of `like`."""
        steps = torch.arange(self.num_frequencies, device=boxes_cxcywh.device) / self.num_frequencies
        angles = boxes_cxcywh.float()[..., None] * (2 * torch.pi) / TEMPERATURE**steps
        waves = torch.cat((angles.sin(), angles.cos()), -1).flatten(2)
        embedded: Tensor = self.mlp(waves.to(like.dtype))
        return embedded


def box_prior(
    boxes_cxcywh: Float[Tensor, "batch queries 4"], rows: int, columns: int
) -> Float[Tensor, "batch queries places"]:
    """1 - d^2 at every place of a map, at least -4, with d the distance from the box's centre in half sides.

    It is 1 at the centre, 0 on the ellipse inside the box, and so draws a mask to its own object (CondInst's relative
    coordinates, reduced to one number). Places are row-major.
    """
    box = boxes_cxcywh.detach().float()
    half_sides = box[..., 2:].clamp(min=LEAST_SIDE) / 2
    across = (torch.arange(columns, device=box.device) + 0.5) / columns
    down = (torch.arange(rows, device=box.device) + 0.5) / rows
    x = ((across - box[..., :1]) / half_sides[..., :1]) ** 2
    y = ((down - box[..., 1:2]) / half_sides[..., 1:]) ** 2
    return (1 - x[:, :, None, :] - y[:, :, :, None]).clamp(min=LOWEST_PRIOR).flatten(2)


def open_patches(coarse_mask_logits: Float[Tensor, "batch queries patches"]) -> Bool[Tensor, "batch 1 queries patches"]:
    """The patches inside each query's mask; all of them where the mask is empty (Mask2Former)."""
    inside = coarse_mask_logits.detach() > INSIDE
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


def box_logits(boxes_cxcywh: Float[Tensor, "batch queries 4"]) -> Float[Tensor, "batch queries 4"]:
    """The logits of boxes, without gradient: the reference of the next stage."""
    return _logit(boxes_cxcywh.detach())


def _logit(fractions: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return torch.logit(fractions.float(), eps=EDGE)
