"""The average follows the parts that learn; it shares the frozen parts with the objective, and checkpoints do too."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.checkpointing.state import BatchLayout, TrainingState
from refcli.engine.distributed.world import World
from refcli.engine.optimisation.moving_average import MovingAverage, names_within

ALONE = World(0, 1, torch.device("cpu"))
LAYOUT = BatchLayout(processes=1, batch_size=1, accumulate=1)


class Taught(nn.Module):
    """A part that learns (with a running mean and a count) and a teacher that does not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def move(self, number: int) -> None:
        """Change everything, as a step with a renewed teacher would."""
        for tensor in self.state_dict().values():
            tensor.copy_(torch.full_like(tensor, number + 1) if tensor.ndim == 0 else tensor + number)


@pytest.mark.parametrize("is_shared", [True, False])
def test_learning_parts_are_averaged_and_the_others_equal_the_objectives(is_shared):
    model = Taught()
    average = MovingAverage(model, decay=0.6, frozen=[model.teacher], is_shared=is_shared)
    expected = {}
    for step in range(1, 8):
        model.move(step)
        average.update(model, step)
        decay = min(1 - step ** (-2 / 3), 0.6)
        for name, tensor in model.student.state_dict().items():
            before = expected.get(name, tensor)
            expected[name] = decay * before + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()

    for name, tensor in average.module.student.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    for mine, its in zip(
        average.module.teacher.state_dict().values(), model.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, its)
    assert (average.module.teacher is model.teacher) is is_shared
    assert not torch.equal(average.module.student[0].weight, model.student[0].weight)
    assert not average.module.training


def test_names_are_those_of_the_state_dict():
    model = Taught()
    teachers = {name for name in model.state_dict() if name.startswith("teacher.")}
    assert names_within(model, [model.teacher]) == teachers
    assert names_within(model, [model.teacher[0], model.student[1]]) == {
        name for name in model.state_dict() if name.startswith(("teacher.0.", "student.1."))
    }
    assert names_within(model, []) == frozenset()


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_checkpoint_has_frozen_parts_once_and_restores_everything(tmp_path, is_shared):
    def state_of(model: Taught) -> TrainingState:
        average = MovingAverage(model, decay=0.6, frozen=[model.teacher], is_shared=is_shared)
        optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
        return TrainingState(model, optimizer, average.module, average.frozen_names, step=3)

    saved, loaded = state_of(Taught(seed=1)), state_of(Taught(seed=2))
    saved.objective.move(1)
    if not is_shared:
        saved.ema.teacher.load_state_dict(saved.objective.teacher.state_dict())
    folder = Checkpoints(tmp_path)
    folder.save(saved, layout=LAYOUT, world=ALONE)
    folder.load(3, loaded, world=ALONE)

    written = load_file(folder.path(3) / "ema.safetensors")
    assert written.keys() == {name for name in saved.objective.state_dict() if name.startswith("student.")}
    for one, other in ((saved.objective, loaded.objective), (saved.ema, loaded.ema)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
    assert not torch.equal(saved.ema.student[0].weight, saved.objective.student[0].weight)


def test_an_average_that_was_saved_completely_is_still_read(tmp_path):
    """As older versions saved it, with the frozen parts, which are now ignored."""
    old, model = Taught(seed=1), Taught(seed=2)
    before = MovingAverage(old, decay=0.6, frozen=[])
    old.move(1)
    optimizer = torch.optim.SGD(old.student.parameters(), lr=0.1)
    Checkpoints(tmp_path).save(TrainingState(old, optimizer, before.module, step=3), layout=LAYOUT, world=ALONE)
    average = MovingAverage(model, decay=0.6, frozen=[model.teacher])
    state = TrainingState(
        model, torch.optim.SGD(model.student.parameters(), lr=0.1), average.module, average.frozen_names
    )
    Checkpoints(tmp_path).load(3, state, world=ALONE)

    assert torch.equal(model.teacher[0].weight, old.teacher[0].weight)
    assert torch.equal(average.module.student[0].weight, before.module.student[0].weight)
