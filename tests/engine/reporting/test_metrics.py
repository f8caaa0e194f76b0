"""A line of metrics: means, rates and utilisation, over steps and processes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from refcli.engine.distributed.world import World
from refcli.engine.reporting.metrics import MetricAverages
from refcli.model.flops import Work

ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class WithTwin(World):
    """A world of two whose other process has measured twice as much of everything."""

    def mean(self, values):
        return [1.5 * value for value in values]


def test_a_term_is_averaged_over_the_steps_that_had_it():
    averages = MetricAverages()
    for number, term in enumerate(("mim", "mlm", "mim")):
        averages.add({term: float(number), "loss": float(number)})
        averages.add_time(1.0, waited=0.0, num_samples=4)

    line = averages.line(ALONE)
    assert (line["mim"], line["mlm"], line["loss"]) == (1.0, 1.0, 1.0)


def test_rates_use_the_total_time_including_waiting():
    averages = MetricAverages()
    averages.add_time(1.5, waited=0.5, num_samples=8, work=Work(600, 3e9))
    averages.add_time(2.5, waited=0.5, num_samples=8, work=Work(400, 5e9))

    line = averages.line(ALONE, gemm_peak=1e10)
    assert line["samples_per_second"] == 4.0
    assert line["tokens_per_second"] == 250.0
    assert line["flops_utilisation"] == pytest.approx(8e9 / (4.0 * 1e10))
    assert line["waiting_for_data"] == 0.25


def test_without_a_known_peak_there_is_no_utilisation():
    averages = MetricAverages()
    averages.add_time(1.0, waited=0.0, num_samples=1)

    assert averages.line(ALONE).keys() == {"samples_per_second", "waiting_for_data"}


def test_throughput_is_of_all_processes_and_utilisation_their_mean():
    averages = MetricAverages()
    averages.add({"loss": 2.0})
    averages.add_time(2.0, waited=0.0, num_samples=8, work=Work(1000, 4e9))

    line = averages.line(WithTwin(0, 2, torch.device("cpu")), gemm_peak=1e10)
    assert line["loss"] == 3.0
    assert line["samples_per_second"] == 8.0
    assert line["tokens_per_second"] == 500 + 1000
    assert line["flops_utilisation"] == pytest.approx((0.2 + 0.4) / 2)
