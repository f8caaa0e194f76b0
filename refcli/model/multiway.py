"""Multiway experts: vision rows and text rows each go through a module of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Rows(NamedTuple):
    """The token rows of a batch, apart by modality; either may have length 0."""

    vision: Float[Tensor, "batch vision_tokens dim"]
    """Class token first, then the patches row-major."""
    text: Float[Tensor, "batch words dim"]


class Multiway(nn.Module):
    """Two experts of one shape: `vision` for image tokens, `language` for words (BEiT-3, section 2.1).

    The split between the two is an argument (the pair of rows), never state of the module.
    """

    def __init__(self, vision: nn.Module, language: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.language = language

    @classmethod
    def of(cls, make: Callable[[], nn.Module]) -> Multiway:
        """A pair of experts made alike."""
        return cls(make(), make())

    def forward(self, rows: Rows) -> Rows:
        """Send each modality through its expert."""
        return Rows(self.vision(rows.vision), self.language(rows.text))
