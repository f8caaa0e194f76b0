"""Metrics and work, which an objective may report besides its losses."""

from __future__ import annotations

import torch
from torch import nn

from refcli.engine.objective import HasDepth, HasMasks, HasMetrics, HasWork, read_metrics, work_of
from refcli.model.flops import Work


class WithMetrics(nn.Module):
    """Reports two scalars, one of them in half precision with a gradient, and the work of a batch."""

    def metrics(self):
        return {"accuracy": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), "count": torch.tensor(3)}

    def work(self, batch):
        return Work(7, 8.0)


def test_metrics_are_read_as_numbers():
    assert read_metrics(WithMetrics()) == {"accuracy": 0.5, "count": 3.0}


def test_an_objective_may_report_nothing(batch_of):
    plain = nn.Linear(1, 1)

    assert not any(isinstance(plain, protocol) for protocol in (HasDepth, HasMasks, HasMetrics, HasWork))
    assert read_metrics(plain) == {}
    assert work_of(plain, batch_of(0)) == Work()


def test_work_is_the_objectives_own(batch_of):
    assert work_of(WithMetrics(), batch_of(0)) == Work(7, 8.0)
