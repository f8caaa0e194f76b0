"""The peak of a device: its best rate, within the time that is allowed, without drawing random numbers."""

from __future__ import annotations

import math

import pytest
import torch

from refcli.engine.measuring import utilisation
from refcli.engine.measuring.utilisation import (
    BUDGET_SECONDS,
    FIRST_SIDE,
    LARGEST_SIDE,
    REPEATS,
    gemm_peak,
    product_seconds,
)

CPU = torch.device("cpu")


@pytest.fixture
def device_of(monkeypatch):
    """Stand in for a device of a given rate; returns the sides that are tried on it."""

    def make(rate) -> list[int]:
        sides: list[int] = []

        def seconds(side, device, dtype):
            sides.append(side)
            return 2 * side**3 / rate(side)

        monkeypatch.setattr(utilisation, "product_seconds", seconds)
        return sides

    return make


@pytest.mark.parametrize("flops_per_second", [2e9, 3e11, 2e12, 1e15])
def test_it_finds_the_rate_of_a_steady_device_in_time(device_of, flops_per_second):
    sides = device_of(lambda side: flops_per_second)

    assert gemm_peak.__wrapped__(CPU, "fp32") == pytest.approx(flops_per_second)
    spent = sum((1 + REPEATS) * 2 * side**3 / flops_per_second for side in sides)
    assert spent <= BUDGET_SECONDS
    assert sides[0] == FIRST_SIDE and sides[-1] <= LARGEST_SIDE
    next_one = (1 + REPEATS) * 2 * (2 * sides[-1]) ** 3 / flops_per_second
    assert sides[-1] == LARGEST_SIDE or spent + next_one > BUDGET_SECONDS


def test_the_best_rate_counts_wherever_it_is_reached(device_of):
    device_of(lambda side: 5e12 if side == 1024 else 1e12)

    assert gemm_peak.__wrapped__(CPU, "bf16") == pytest.approx(5e12)


def test_a_very_slow_device_is_asked_for_one_size_only(device_of):
    sides = device_of(lambda side: 1e6)

    assert gemm_peak.__wrapped__(CPU, "fp32") == pytest.approx(1e6)
    assert sides == [FIRST_SIDE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_takes_time_and_no_random_numbers(dtype):
    before = torch.get_rng_state()
    seconds = product_seconds(64, CPU, dtype)

    assert 0 < seconds < math.inf
    assert torch.equal(torch.get_rng_state(), before)


def test_the_time_of_a_product_is_the_fastest_after_a_warm_up(monkeypatch):
    durations = [0.1, 5.0, 3.0, 4.0]  # the first, for the warm-up, does not count
    clock = iter([moment for start, spent in enumerate(durations) for moment in (10.0 * start, 10.0 * start + spent)])
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: next(clock))

    assert product_seconds(8, CPU, torch.float32) == pytest.approx(3.0)
