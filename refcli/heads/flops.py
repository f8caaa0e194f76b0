"""FLOPs of a head, counted by torch on the meta device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from refcli.config.schema import TowerSettings
from refcli.heads.base import Head
from refcli.model.beit3 import Features
from refcli.model.multiway import Tokens

COUNTED_WORDS = (8, 24, 48)
"""A head's FLOPs are a polynomial of degree 2 in the number of words (attention), so three counts determine it."""


class HeadFlops:
    """FLOPs of a head's forward pass for one pair; each size of image is counted once.

    Args:
        head: only its settings are used, so it may be compiled or sharded.
        tower: settings of the tower below it.
    """

    def __init__(self, head: Head[Any], tower: TowerSettings) -> None:
        self.tower = tower
        with torch.device("meta"):
            self._head = type(head)(head.config, tower).eval().requires_grad_(False)
        self._polynomials: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, image_size: tuple[int, int], num_words: int) -> float:
        """Two for each multiply-add of its products; `num_words` counts padding as well."""
        if image_size not in self._polynomials:
            counts = [self._count(image_size, words) for words in COUNTED_WORDS]
            self._polynomials[image_size] = np.polyfit(COUNTED_WORDS, counts, len(COUNTED_WORDS) - 1)
        return float(np.polyval(self._polynomials[image_size], num_words))

    @torch.no_grad()
    def _count(self, image_size: tuple[int, int], num_words: int) -> int:
        grid = (image_size[0] // self.tower.patch_size, image_size[1] // self.tower.patch_size)
        with torch.device("meta"):
            vision = torch.empty(1, 1 + grid[0] * grid[1], self.tower.dim)
            text = torch.empty(1, num_words, self.tower.dim)
            is_pad = torch.empty(1, num_words, dtype=torch.bool)
        hidden = dict.fromkeys(self._head.hidden_layers, Tokens(vision, text))
        with FlopCounterMode(display=False) as counter:
            self._head.forward(Features(vision, text, is_pad, grid, image_size, hidden))
        return int(counter.get_total_flops())
