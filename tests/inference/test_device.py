"""The device and the precision are what was asked for, or a documented choice."""

from __future__ import annotations

import pytest
import torch

from refcli.inference import device as device_module
from refcli.inference.device import BF16_PAYS_FROM_PARAMETERS, choose_device, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_an_asked_precision_is_obeyed(precision, dtype):
    assert choose_precision(precision, CPU, 1) == dtype


def test_auto_keeps_small_models_on_a_cpu_in_fp32_and_large_ones_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr(device_module, "cpu_multiplies_bf16", lambda: True)
    assert choose_precision("auto", CPU, BF16_PAYS_FROM_PARAMETERS - 1) == torch.float32
    assert choose_precision("auto", CPU, BF16_PAYS_FROM_PARAMETERS) == torch.bfloat16
    monkeypatch.setattr(device_module, "cpu_multiplies_bf16", lambda: False)
    assert choose_precision("auto", CPU, BF16_PAYS_FROM_PARAMETERS) == torch.float32


def test_auto_is_a_device_that_works():
    assert torch.zeros(2, device=choose_device("auto")).sum() == 0
    assert choose_device("cpu") == CPU
