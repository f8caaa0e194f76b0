"""What the loop asks of the process: memory that stays, a device that exists, a world of several."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from refcli.engine.allocator import keep_freed_pages
from refcli.engine.distributed import World, resolve_device
from refcli.errors import ConfigError

COUNT_FAULTS = """
import resource, torch
from refcli.engine.allocator import keep_freed_pages
if {keep}: assert keep_freed_pages()
def step():
    for _ in range(16): torch.ones(16 * 2**20)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_pages_are_not_faulted_in_again():
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)], capture_output=True, check=True
            ).stdout
        )
        for keep in (False, True)
    }

    assert faults[True] < 0.1 * faults[False]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))

    assert keep_freed_pages() is False


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_an_unknown_device_is_a_config_error(name):
    with pytest.raises(ConfigError, match="no device called"):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_a_config_error():
    with pytest.raises(ConfigError, match="no usable CUDA"):
        resolve_device("cuda")


def test_one_process_is_a_world_of_size_one():
    alone = World(0, 1, torch.device("cpu"))
    module = torch.nn.Linear(1, 1)

    assert alone.wrap(module) is module
    assert alone.mean([1.5, 2.5]) == [1.5, 2.5]
    assert (alone.any(True), alone.any(False)) == (True, False)


TWO_PROCESSES = """
import time
import torch
from torch import nn
from refcli.engine.distributed import join_world
world = join_world("cpu")
class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    def forward(self, x):
        return (self.used * x).sum()
module = Half()
wrapped = world.wrap(module)
wrapped(torch.full((3,), float(world.rank + 1))).backward()
assert module.used.grad.tolist() == [1.5] * 3, module.used.grad
assert world.mean([float(world.rank)]) == [0.5]
assert world.any(world.rank == 1) and not world.any(False)
assert world.is_main == (world.rank == 0)
world.wait(); world.close()
time.sleep(2)  # a process that leaves within a second of wrapping is aborted by torch's own threads now and then
"""


def test_two_processes_average_their_gradients_and_agree_to_stop(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)

    assert done.returncode == 0, done.stderr
