"""A model without training: it finds white pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from refcli.config.schema import ModelSettings, TowerSettings
from refcli.contracts.prediction import Prediction
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import LoadedWeights

WHITE_ENOUGH = 1.0
"""White is above 2 after normalisation, black below -1.7, the letterbox's padding 0."""


class FindsWhite(nn.Module):
    """Box and mask of the white pixels; an expression of n words makes it believe in a target with 1 - n / 10."""

    def __init__(self, *, box: bool = True, mask: bool = True, existence: bool = True) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.has = {"box": box, "mask": mask, "existence": existence}
        self.batch_sizes: list[int] = []

    def predict(self, images, token_ids, token_is_pad) -> Prediction:
        self.batch_sizes.append(len(images))
        logits = images.float().mean(1) - WHITE_ENOUGH
        boxes = []
        for plane in logits:
            rows, columns = torch.nonzero(plane > 0, as_tuple=True)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            else:
                boxes.append([0, 0, 0, 0])
        existence = 1 - (~token_is_pad).sum(1).float() / 10
        return Prediction(
            boxes_xyxy=torch.tensor(boxes).float()[:, None] if self.has["box"] else None,
            scores=torch.full((len(images), 1), 0.75),
            mask_logits=logits[:, None] if self.has["mask"] else None,
            existence=existence if self.has["existence"] else None,
        )


@pytest.fixture
def finds_white():
    """Weights of a model that finds what is white; keyword arguments switch its outputs off."""

    def build(**outputs: bool) -> LoadedWeights:
        settings = ModelSettings(tower=TowerSettings(image_size=96, dim=32, layers=1, heads=2, ffn_dim=32))
        return LoadedWeights(FindsWhite(**outputs), settings, Tokenizer.load(settings.text), "finds-white", {})

    return build


@pytest.fixture
def white_box():
    """A black image with one white box: (width, height, box xyxy) -> uint8 RGB."""

    def paint(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
        return pixels

    return paint
