"""The learning rate is a function of the step alone."""

from __future__ import annotations

import pytest
import torch

from refcli.engine.optimisation.schedule import lr_factor


def test_without_warm_up_it_is_the_cosine_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)

    for step in range(40):
        ours = lr_factor(step, total_steps=40, warmup_steps=0, final_ratio=0.1)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_warm_up_rises_linearly_to_one_and_the_cosine_starts_there():
    factors = [lr_factor(step, total_steps=100, warmup_steps=4, final_ratio=0.0) for step in range(6)]

    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[5] < 1


def test_it_ends_at_the_final_ratio_and_stays_there():
    assert lr_factor(50, total_steps=50, warmup_steps=10, final_ratio=0.05) == pytest.approx(0.05)
    assert lr_factor(80, total_steps=50, warmup_steps=10, final_ratio=0.05) == pytest.approx(0.05)


def test_a_run_that_is_all_warm_up_does_not_divide_by_zero():
    assert [lr_factor(step, total_steps=2, warmup_steps=2, final_ratio=0.0) for step in (0, 1)] == [0.5, 1.0]
