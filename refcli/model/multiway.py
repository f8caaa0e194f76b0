"""Multiway experts: one module for vision tokens and one for text tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Tokens(NamedTuple):
    """The tokens of a batch by modality; either may have length 0."""

    vision: Float[Tensor, "batch vision_tokens dim"]
    """Class token first, then the patches row-major."""
    text: Float[Tensor, "batch words dim"]


class Multiway(nn.Module):
    """Two experts of one shape: `vision` for image tokens, `language` for words (BEiT-3, section 2.1).

    The split between the two is an argument (the pair of tensors), never state of the module.
    """

    def __init__(self, vision: nn.Module, language: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.language = language

    @classmethod
    def of(cls, make: Callable[[], nn.Module]) -> Multiway:
        """A pair of equally built experts."""
        return cls(make(), make())

    def forward(self, tokens: Tokens) -> Tokens:
        """Send each modality through its expert."""
        return Tokens(self.vision(tokens.vision), self.language(tokens.text))
