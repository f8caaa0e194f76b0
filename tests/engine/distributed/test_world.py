"""A world of one process, and how several processes join, agree and leave."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import pytest
import torch

from refcli.engine.distributed.launching import Launch, launch
from refcli.engine.distributed.world import World, claim_error_report, join_world, no_gradient_sync
from refcli.errors import ConfigError


def test_one_process_is_a_world_of_size_one():
    alone = World(0, 1, torch.device("cpu"))
    module = torch.nn.Linear(1, 1)

    assert alone.wrap(module) is module
    assert alone.wrap(module, parallel="fsdp") is module
    assert alone.mean([1.5, 2.5]) == [1.5, 2.5]
    assert alone.gather("mine") == ["mine"]
    assert (alone.any(True), alone.any(False)) == (True, False)
    with no_gradient_sync(module):
        module(torch.ones(1)).backward()
    assert module.weight.grad == 1


@pytest.fixture
def several(monkeypatch):
    """An environment such as torchrun gives to the third of four processes."""
    given = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    return monkeypatch


def test_half_an_environment_is_refused(several):
    several.delenv("LOCAL_RANK")
    with pytest.raises(ConfigError, match="lacks LOCAL_RANK"):
        join_world("cpu")


def test_several_processes_need_a_gpu_each(several):
    several.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="this machine has 2"):
        join_world("auto")
    with pytest.raises(ConfigError, match="each one uses its own GPU"):
        join_world("cuda:1")


def test_several_processes_train_on_cuda_or_the_cpu(several):
    several.setattr("torch.backends.mps.is_available", lambda: True)
    with pytest.raises(ConfigError, match="cannot train on mps"):
        join_world("mps")


def test_a_process_reports_its_error_if_no_store_is_reachable(several):
    assert claim_error_report(5, timeout=timedelta(seconds=0.2)) is None


TWO_PROCESSES = """
import torch
from torch import nn
from refcli.engine.distributed.world import join_world, no_gradient_sync, claim_error_report
torch.set_num_threads(1)
world = join_world("cpu")
class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    def forward(self, x):
        return (self.used * x).sum()
x = torch.full((3,), float(world.rank + 1))
for static_graph in (False, True):
    module = Half()
    wrapped = world.wrap(module, static_graph=static_graph)
    for _ in range(3):
        wrapped.zero_grad()
        wrapped(x).backward()
        assert module.used.grad.tolist() == [1.5] * 3, module.used.grad
wrapped = world.wrap(module := Half())
with no_gradient_sync(wrapped):
    wrapped(x).backward()
    assert module.used.grad.tolist() == x.tolist()
wrapped(2 * x).backward()
assert module.used.grad.tolist() == [4.5] * 3
assert world.mean([float(world.rank)]) == [0.5]
assert world.gather({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}]
assert world.any(world.rank == 1) and not world.any(False)
assert world.is_main == (world.rank == 0)
if world.rank == 1:
    assert claim_error_report(7) is None
world.wait()
if world.rank == 0:
    assert claim_error_report(1) == 7
world.close()
"""
STARVED = """
import os, sys, time
from pathlib import Path
import torch
from refcli.engine.distributed.world import join_world
torch.set_num_threads(1)
world = join_world("cpu")
cpu = sorted(os.sched_getaffinity(0))[0]
def starve_communication():
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "pt_gloo_runloop\\n":
            os.sched_setaffinity(int(task.name), {cpu})
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
    if os.fork() == 0:
        os.sched_setaffinity(0, {cpu})
        end = time.monotonic() + 3
        while time.monotonic() < end:
            pass
        os._exit(0)
    time.sleep(0.3)
def train():
    wrapped = world.wrap(torch.nn.Linear(2, 2))
    wrapped.me = [wrapped]
    wrapped(torch.ones(1, 2)).sum().backward()
    starve_communication()
    for _ in range(5):
        world.mean([1.0])
    if sys.argv[1] == "fail":
        raise SystemExit(7)
try:
    train()
finally:
    world.close()
"""
"""Torch's communication threads get no time on a busy CPU, so that they let go of their last tensors late."""


def run_in_two_processes(script: str, *arguments: str) -> int:
    return launch([sys.executable, "-c", script, *arguments], Launch(2), note=print)


def test_two_processes_average_their_gradients_and_agree():
    assert run_in_two_processes(TWO_PROCESSES) == 0


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux can starve a thread")
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("end", "code"), [pytest.param("return", 0, marks=pytest.mark.slow), ("fail", 7)])
def test_processes_leave_cleanly_however_soon_they_leave(times, end, code):
    assert [run_in_two_processes(STARVED, end) for _ in range(times)] == [code] * times
