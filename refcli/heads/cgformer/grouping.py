"""CGFormer's grouping: assign every place of a map to one query token, then update every token from its places."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Noise = Literal["never", "training", "always"]
"""When Gumbel noise is added to the similarities before places are assigned to tokens."""
MLP_RATIO = 2
NORM_EPS = 1e-12
"""Added to the length of a vector before dividing by it, as published."""
LEAST_TEMPERATURE = 0.01
SOFTPLUS_OF_ONE = math.log(math.expm1(1 - LEAST_TEMPERATURE))
"""The raw parameter of a temperature of 1, at which the published code starts (and stays)."""
LEAST_UNIFORM = 1e-20
"""Keeps the logarithms of Gumbel noise finite."""


class TokenMLP(nn.Sequential):
    """LayerNorm, then two linear layers with GELU between; CGFormer adds no residual around it."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, MLP_RATIO * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(MLP_RATIO * dim, dim),
            nn.Dropout(dropout),
        )


@dataclass(frozen=True)
class Grouped:
    """The output of one grouping."""

    tokens: Float[Tensor, "batch tokens dim"]
    assignment: Float[Tensor, "batch tokens places"]
    """1 at the places of a token, else 0; gradients are those of the softmax over the tokens."""
    referent_logits: Float[Tensor, "batch places"]
    """Logit of the noise-free softmax probability that a place belongs to the last token, the referent."""


class Grouping(nn.Module):
    """Hard assignment of places to tokens by cosine similarity, and the update of the tokens (CGFormer, group layer).

    The temperature only scales gradients: it does not change the closest token. It is softplus(tau) + 0.01; as
    published, it is exp(min(tau, 0)) with tau starting at 1, where its gradient is always 0.

    Args:
        dim: width of tokens and maps.
        dropout: after the output projection and in the MLP.
        noise: when Gumbel noise is added; in the published code always, at test time too.
        published_temperature: see above.
    """

    def __init__(self, dim: int, *, dropout: float, noise: Noise, published_temperature: bool) -> None:
        super().__init__()
        self.noise = noise
        self.published_temperature = published_temperature
        self.tau = nn.Parameter(torch.tensor([1.0 if published_temperature else SOFTPLUS_OF_ONE]))
        self.map_norm = nn.LayerNorm(dim)
        self.token_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.mlp = TokenMLP(dim, dropout=dropout)

    def temperature(self) -> Float[Tensor, " 1"]:
        """The divisor of the similarities."""
        tau = self.tau.float()
        return tau.clamp(max=0).exp() if self.published_temperature else F.softplus(tau) + LEAST_TEMPERATURE

    def forward(self, tokens: Float[Tensor, "batch tokens dim"], places: Float[Tensor, "batch places dim"]) -> Grouped:
        """Assign every place to a token, then update every token from the mean of its places."""
        places = self.map_norm(places)
        query, key = self.query(self.token_norm(tokens)), self.key(places)
        # Rounded to bf16, up to one place in ten would change its token. Autocast knows no device `meta`.
        with nullcontext() if places.is_meta else torch.autocast(places.device.type, enabled=False):
            cosine = _unit(query.float()) @ _unit(key.float()).transpose(1, 2)
        temperature = self.temperature()
        if self.noise == "always" or (self.noise == "training" and self.training):
            assignment = straight_through((cosine + gumbel_like(cosine)) / temperature)
        else:
            assignment = straight_through(cosine / temperature)
        value = self.value(places)
        gathered = assignment.to(value.dtype) @ value
        mean = gathered / (assignment.sum(-1, keepdim=True) + 1).to(value.dtype)
        updated: Tensor = self.mlp(tokens + self.out(mean))
        scaled = cosine / temperature
        return Grouped(updated, assignment, scaled[:, -1] - scaled[:, :-1].logsumexp(1))


def gumbel_like(x: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape, type and device of `x`."""
    uniform = torch.rand_like(x).clamp(min=LEAST_UNIFORM)
    return -(-uniform.log()).clamp(min=LEAST_UNIFORM).log()


def _unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit: Tensor = x / (length + NORM_EPS)
    return unit


def straight_through(logits: Float[Tensor, "batch tokens places"]) -> Float[Tensor, "batch tokens places"]:
    """One-hot over the tokens, with the gradient of the softmax over them."""
    soft = logits.softmax(1)
    hard = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0)
    return hard + soft - soft.detach()
