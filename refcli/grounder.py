"""Grounder: a tower and a head as one module, for training and prediction."""

from __future__ import annotations

import re
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.schema import ModelSettings
from refcli.contracts.batch import Batch
from refcli.contracts.prediction import Prediction
from refcli.heads.base import Head
from refcli.heads.flops import HeadFlops
from refcli.heads.table import head_class, head_settings
from refcli.model.beit3 import Features, OneTower
from refcli.model.flops import BACKWARD_FACTOR, Work, training_work

BLOCK_NAME = re.compile(r"^tower\.encoder\.blocks\.(\d+)\.")


class Grounder(nn.Module):
    """An Objective of the training loop, and the model behind `predict`."""

    has_static_graph = True
    """Every step trains the same parameters."""

    def __init__(self, tower: OneTower, head: Head[Any]) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self._head_flops: HeadFlops | None = None

    @classmethod
    def from_settings(cls, model: ModelSettings) -> Grounder:
        """Build a model with fresh weights.

        Raises:
            ConfigError: an unknown head, or a head setting that does not exist.
        """
        return cls(OneTower(model.tower), head_class(model.head.name)(head_settings(model.head), model.tower))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted losses by name: the whole computation of a training step. `step` is the loop's counter."""
        features = self.features(batch.images, batch.token_ids, batch.token_is_pad)
        return self.head.losses(self.head(features), batch.targets)

    def predict(
        self,
        images: Float[Tensor, "batch 3 height width"],
        token_ids: Int[Tensor, "batch words"],
        token_is_pad: Bool[Tensor, "batch words"],
    ) -> Prediction:
        """The prediction of the head, in the model frame."""
        return self.head.predict(self.head(self.features(images, token_ids, token_is_pad)))

    def features(
        self,
        images: Float[Tensor, "batch 3 height width"],
        token_ids: Int[Tensor, "batch words"],
        token_is_pad: Bool[Tensor, "batch words"],
    ) -> Features:
        """The features of the tower, with the hidden layers that the head reads."""
        features: Features = self.tower(images, token_ids, token_is_pad, keep_hidden=self.head.hidden_layers)
        return features

    def work(self, batch: Batch) -> Work:
        """Tokens and model FLOPs of one training step on the batch."""
        return training_work(self.tower, batch) + self.head_work(batch)

    def head_work(self, batch: Batch) -> Work:
        """Model FLOPs of the head in one training step on the batch."""
        if self._head_flops is None:
            self._head_flops = HeadFlops(self.head, self.tower.settings)
        pairs, _, height, width = batch.images.shape
        forward = pairs * self._head_flops((height, width), batch.token_ids.shape[1])
        is_trained = any(parameter.requires_grad for parameter in self.head.parameters())
        return Work(flops=forward * (1 + BACKWARD_FACTOR if is_trained else 1))

    def param_depth(self, name: str) -> int | None:
        """The depth of a parameter in the tower: 0 for embeddings, 1..layers for blocks, None for the head."""
        if not name.startswith("tower."):
            return None
        if block := BLOCK_NAME.match(name):
            return int(block.group(1)) + 1
        return self.tower.settings.layers if name.startswith("tower.encoder.norm") else 0
