"""A run warns before it begins if bf16 is no faster on this machine."""

from __future__ import annotations

import pytest
import torch

from refcli.config.load import apply_overrides, validate
from refcli.config.schema import FinetuneSettings
from refcli.recipes import precision as recipe
from refcli.recipes.precision import slow_precision


@pytest.mark.parametrize(
    ("precision", "device", "gains", "is_reported"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "cpu", True, False),
        ("fp32", "cpu", False, False),
        ("bf16", "cuda", False, False),
    ],
)
def test_bf16_that_is_no_faster_is_reported(settings, monkeypatch, precision, device, gains, is_reported):
    monkeypatch.setattr(recipe, "cpu_gains_from_bf16", lambda: gains)
    monkeypatch.setattr(recipe, "gpu_has_bf16", lambda: True)
    values = apply_overrides(settings.model_dump(), [f"train.precision={precision}"])
    asked = validate(FinetuneSettings, values, where="this test")
    assert any("train.precision=fp32" in note for note in slow_precision(asked, torch.device(device))) == is_reported
