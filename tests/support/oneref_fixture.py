"""The official OneRef golden values, and our model loaded with the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.grounder import Grounder
from refcli.weights.official.conversions.oneref import from_official

TINY_TOWER = TowerSettings(
    image_size=64, patch_size=16, dim=64, layers=3, heads=4, ffn_dim=256, vocabulary_size=200, drop_path=0.0
)


@dataclass(frozen=True)
class Golden:
    """One fixture folder: tensors in and out, official gradients, and our model."""

    io: dict[str, Tensor]
    gradients: dict[str, Tensor]
    losses: dict[str, float]
    meta: dict[str, object]
    grounder: Grounder
    folder: Path

    def batch(self) -> Batch:
        """The fixture's inputs and truth."""
        is_pad = self.io["padding_mask"].bool()
        masks = self.io["target_mask"][:, 0].bool()
        known = torch.ones(len(masks), dtype=torch.bool)
        targets = Targets(self.io["target_box"], masks, known, known)
        return Batch(self.io["images"], self.io["token_ids"], is_pad, targets, ("a", "b", "c", "d"))


def load_golden(folder: Path, *, res: bool) -> Golden:
    """Load a `oneref_tiny_*` folder and convert its weights."""
    meta = json.loads((folder / "meta.json").read_text())
    weights = {"contrast": 1.0} | ({} if res else {"mask_focal": 0.0, "mask_dice": 0.0})
    head = HeadChoice(settings={"res": res, "similarity_truth": "mask", "loss_weights": weights})
    grounder = Grounder.from_settings(ModelSettings(tower=TINY_TOWER, head=head))
    converted = from_official(load_file(folder / "weights.safetensors"))
    grounder.load_state_dict(converted.state, strict=True)
    return Golden(
        io=load_file(folder / "io.safetensors"),
        gradients=load_file(folder / "grads.safetensors"),
        losses=meta["losses"],
        meta=meta,
        grounder=grounder.eval(),
        folder=folder,
    )
