"""Sharded objectives: they learn like plain ones, and their checkpoints are the plain ones'."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from refcli.config.schema import TowerSettings
from refcli.engine.distributed.launching import Launch, launch
from refcli.engine.distributed.sharding import (
    full_model_state,
    full_optimizer_state,
    load_full_model_state,
    load_full_optimizer_state,
    shard,
    unsharded,
)
from refcli.model.encoder import MultiwayEncoder
from refcli.model.multiway import Tokens

TOWER = TowerSettings(image_size=16, dim=12, layers=2, heads=2, ffn_dim=20, drop_path=0.0)


class Objective(nn.Module):
    """A tower of two blocks, a scale that is a single number, a parameter without use, a frozen one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder = MultiwayEncoder(TOWER)
        self.head = nn.Linear(12, 3)
        self.log_scale = nn.Parameter(torch.tensor(0.3))
        self.unused = nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.rand(12), requires_grad=False)
        self.register_buffer("mean", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, _ = self.encoder(Tokens(x[:, :5] + self.frozen, x[:, 5:]), None)
        error = (self.head(rows.vision) - self.mean) * self.log_scale.exp()
        return {"square": error.square().mean(), "text": rows.text.cumsum(-1).square().mean()}


def batch(step: int) -> torch.Tensor:
    return torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(step))


def optimizer_of(objective: nn.Module) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=0.01, eps=1e-3, fused=True)  # a large eps lets rounding stay small


def train(objective: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Train; returns the gradient norms before clipping."""
    norms = []
    for step in steps:
        optimizer.zero_grad()
        sum(objective(batch(step)).values()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(objective.parameters(), 0.5)))
        optimizer.step()
    return norms


def assert_same_state(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert not isinstance(value, DTensor)
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def sharded(group) -> nn.Module:
    objective = Objective()
    shard(objective, torch.device("cpu"))
    return objective


def test_each_block_and_the_rest_are_sharded_and_learn_as_before(sharded):
    plain = Objective()
    here, there = optimizer_of(sharded), optimizer_of(plain)

    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert train(sharded, here, range(4)) == pytest.approx(train(plain, there, range(4)), rel=1e-5)
    assert_same_state(full_model_state(sharded), plain.state_dict())


def test_a_checkpoint_of_either_kind_resumes_as_the_other(sharded):
    plain, other = Objective(), Objective()
    here, there, third = optimizer_of(sharded), optimizer_of(plain), optimizer_of(other)
    train(plain, there, range(3))

    load_full_model_state(sharded, deepcopy(full_model_state(plain)))
    load_full_optimizer_state(sharded, here, deepcopy(full_optimizer_state(plain, there)))
    train(plain, there, range(3, 6))
    train(sharded, here, range(3, 6))
    assert_same_state(full_model_state(sharded), plain.state_dict())

    load_full_model_state(other, full_model_state(sharded))
    load_full_optimizer_state(other, third, full_optimizer_state(sharded, here))
    train(plain, there, range(6, 9))
    train(other, third, range(6, 9))
    assert_same_state(other.state_dict(), plain.state_dict())
    mine, theirs = third.state_dict(), there.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for number, values in theirs["state"].items():
        assert_same_state(mine["state"][number], values)


def test_the_unsharded_copy_of_a_module_is_plain(sharded):
    plain = Objective()
    train(plain, optimizer_of(plain), range(2))
    train(sharded, optimizer_of(sharded), range(2))
    copy = unsharded(sharded.eval())

    assert unsharded(plain) is plain
    assert not copy.training
    assert_same_state(dict(copy.named_parameters()), dict(plain.named_parameters()))
    assert {name: p.requires_grad for name, p in copy.named_parameters()} == {
        name: p.requires_grad for name, p in plain.named_parameters()
    }
    torch.testing.assert_close(copy(batch(9)), plain(batch(9)))
    train(sharded.train(), optimizer_of(sharded), range(1))
    with pytest.raises(AssertionError):
        assert_same_state(full_model_state(sharded), copy.state_dict())


def test_a_state_that_does_not_fit_is_refused(sharded):
    state = full_model_state(sharded)
    with pytest.raises(RuntimeError, match="log_scale"):
        load_full_model_state(sharded, {name: value for name, value in state.items() if name != "log_scale"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_full_model_state(sharded, {**state, "head.weight": torch.zeros(3, 13)})


TWO_PROCESSES = """
import sys
import torch
from refcli.engine.distributed.world import join_world, no_gradient_sync
from refcli.engine.distributed.sharding import full_model_state, full_optimizer_state, load_full_model_state, unsharded
sys.path.insert(0, sys.argv[1])
from test_sharding import Objective, batch, optimizer_of
torch.set_num_threads(1)
world = join_world("cpu")
ways = {name: Objective() for name in ("alone", "ddp", "fsdp")}
wrapped = {name: model if name == "alone" else world.wrap(model, parallel=name) for name, model in ways.items()}
optimizers = {name: optimizer_of(model) for name, model in ways.items()}
for step in range(3):
    whole_batch = batch(step)
    mine = whole_batch[2 * world.rank : 2 * world.rank + 2]
    norms = []
    for name, model in wrapped.items():
        optimizers[name].zero_grad()
        if name == "alone":
            sum(model(whole_batch).values()).backward()
        else:
            with no_gradient_sync(model):
                (sum(model(mine[:1]).values()) / 2).backward()
            (sum(model(mine[1:]).values()) / 2).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizers[name].step()
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(norms[:1] * 3))
states = {name: full_model_state(model) for name, model in wrapped.items()}
adam = full_optimizer_state(ways["fsdp"], optimizers["fsdp"])
copy = unsharded(ways["fsdp"])
assert world.is_main or (states["fsdp"], adam) == ({}, {})
if world.is_main:
    assert states["alone"].keys() == states["ddp"].keys() == states["fsdp"].keys()
    for name, value in states["alone"].items():
        for other in (states["ddp"][name], states["fsdp"][name], copy.state_dict()[name]):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
    for number, values in optimizers["alone"].state_dict()["state"].items():
        torch.testing.assert_close(values["exp_avg_sq"], adam["state"][number]["exp_avg_sq"], rtol=1e-4, atol=1e-9)
shards = sum(p.to_local().numel() for p in ways["fsdp"].parameters())
sizes = world.gather(shards)
assert sum(sizes) == sum(p.numel() for p in ways["alone"].parameters()), sizes
assert max(sizes) < 0.7 * sum(sizes)
load_full_model_state(ways["fsdp"], states["alone"])
world.close()
"""


@pytest.mark.slow
def test_two_processes_ddp_and_sharded_learn_what_one_process_learns():
    assert launch([sys.executable, "-c", TWO_PROCESSES, str(Path(__file__).parent)], Launch(2), note=print) == 0
