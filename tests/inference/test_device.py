"""The device and the precision are the requested ones, or a documented choice."""

from __future__ import annotations

import pytest
import torch

from refcli.inference import device as device_module
from refcli.inference.device import BF16_PAYS_FROM_PARAMETERS, choose_device, choose_precision, cpu_gains_from_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_requested_precision_is_used(precision, dtype):
    assert choose_precision(precision, CPU, 1) == dtype


@pytest.mark.parametrize(("bf16_seconds", "gains"), [(0.1, True), (0.9, False), (2.0, False)])
def test_auto_is_bf16_for_large_models_on_a_cpu_that_multiplies_it_clearly_faster(monkeypatch, bf16_seconds, gains):
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
    monkeypatch.setattr(device_module, "product_seconds", lambda side, device, dtype: seconds[dtype])
    cpu_gains_from_bf16.cache_clear()
    try:
        assert choose_precision("auto", CPU, BF16_PAYS_FROM_PARAMETERS - 1) == torch.float32
        assert choose_precision("auto", CPU, BF16_PAYS_FROM_PARAMETERS) == (torch.bfloat16 if gains else torch.float32)
    finally:
        cpu_gains_from_bf16.cache_clear()


def test_auto_is_a_device_that_works():
    assert torch.zeros(2, device=choose_device("auto")).sum() == 0
    assert choose_device("cpu") == CPU
