"""The loop: it learns, measures, averages, validates, freezes, and stops at values that are not finite."""

from __future__ import annotations

import json
import signal
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from refcli.errors import ConfigError, TrainingError


def equal_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(here, there) for here, there in pairs)


def test_it_learns_a_linear_map(run_training, notes):
    run_training(objective=LinearBox(), changes={"steps": 150}, optim={"lr": 5e-2})

    assert notes.measured_lines[-1]["l2"] < 1e-3 * notes.measured_lines[0]["l2"]


def test_every_line_of_metrics_has_the_mean_of_every_term_since_the_last_one(run_training, notes):
    run_training("fine")
    fine = list(notes.measured_lines)
    notes.measured_lines.clear()
    run_training("coarse", changes={"log_every": 4})

    assert [line["step"] for line in notes.measured_lines] == [4, 8, 12]
    for number, line in enumerate(notes.measured_lines):
        steps = fine[4 * number : 4 * number + 4]
        for name in ("l1", "l2", "loss", "grad_norm"):
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / 4, abs=2e-6)
        assert line["loss"] == pytest.approx(line["l1"] + line["l2"], abs=2e-6)


def test_an_objective_without_a_loss_is_a_config_error(run_training):
    class Silent(LinearBox):
        def forward(self, batch, step):
            return {}

    with pytest.raises(ConfigError, match="no loss to learn from"):
        run_training(objective=Silent())


def test_accumulating_two_batches_is_one_batch_of_both(run_training, batch_of):
    def both(number):
        one, two = batch_of(2 * number), batch_of(2 * number + 1)
        boxes = torch.cat([one.targets.boxes_cxcywh, two.targets.boxes_cxcywh])
        return replace(
            one,
            images=torch.cat([one.images, two.images]),
            targets=replace(one.targets, boxes_cxcywh=boxes),
            ids=one.ids + two.ids,
        )

    def without_dropout():
        torch.manual_seed(0)
        return LinearBox()

    small, _, _ = run_training("small", objective=without_dropout(), changes={"accumulate": 2})
    large, _, _ = run_training("large", objective=without_dropout(), changes={"accumulate": 1}, batch=both)

    for here, there in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


class LinearBox(nn.Module):
    """The plainest objective."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, batch, step):
        return {"l2": (self.head(batch.images.flatten(1)) - batch.targets.boxes_cxcywh).square().mean()}


def test_the_average_is_the_recurrence_of_its_definition(run_training):
    seen = []

    class Recording(LinearBox):
        def forward(self, batch, step):
            seen.append((step, self.head.weight.detach().clone()))
            return super().forward(batch, step)

    model, average, _ = run_training(objective=Recording(), changes={"accumulate": 1, "ema_decay": 0.7, "steps": 9})

    after_step = [weight for _, weight in seen[1:]] + [model.head.weight.detach()]
    expected = after_step[0]
    for updates, weight in enumerate(after_step[1:], start=1):
        decay = min(1 - (1 + updates) ** (-2 / 3), 0.7)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.head.weight, expected, rtol=1e-6, atol=1e-7)


def test_frozen_parts_do_not_change_and_do_not_drop(run_training):
    modes = []

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.head = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5)), nn.Linear(8, 4)

        def forward(self, batch, step):
            modes.append((self.tower.training, self.tower[1].training, self.head.training))
            return {"l1": (self.head(self.tower(batch.images.flatten(1))) - batch.targets.boxes_cxcywh).abs().mean()}

    model = Frozen()
    tower, head = model.tower[0].weight.detach().clone(), model.head.weight.detach().clone()
    run_training(
        objective=model, frozen=[model.tower], validate=lambda m: {"score": 0.0}, changes={"validate_every": 4}
    )

    assert torch.equal(model.tower[0].weight, tower)
    assert not torch.equal(model.head.weight, head)
    assert set(modes) == {(False, False, True)}, "also after a validation"


def test_validation_sees_the_average_in_evaluation_mode_and_disturbs_nothing(run_training, notes):
    watched = []

    def validate(model):
        watched.append((model, model.training))
        torch.rand(7)
        return {"score": float(len(watched) == 2)}

    unwatched, _, _ = run_training("unwatched")
    model, average, run = run_training("watched", validate=validate, changes={"validate_every": 4})

    assert [step for step, _ in ((line["step"], best) for line, best in notes.validated_lines)] == [4, 8, 12]
    assert [best for _, best in notes.validated_lines] == [True, True, False]
    assert all(seen is average and not training for seen, training in watched)
    assert run.checkpoints.pointer("best").step == 8
    assert equal_bits(model, unwatched)


def test_signals_act_as_usual_after_training(run_training):
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    run_training()

    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_and_names_the_batch(run_training, batch_of, tmp_path, value):
    def poisoned(number):
        batch = batch_of(number)
        return replace(batch, images=batch.images.clone().fill_(value)) if number == 9 else batch

    with pytest.raises(TrainingError, match="not finite at step 4") as caught:
        run_training(batch=poisoned)

    record = json.loads((tmp_path / "run" / "non_finite-step-00000004.json").read_text())
    assert caught.value.where == str(tmp_path / "run" / "non_finite-step-00000004.json")
    assert [(batch["process"], batch["ids"]) for batch in record["batches"]] == [(0, ["9/0", "9/1", "9/2", "9/3"])]
    assert record["batches"][0]["losses"] == {"l1": "nan", "l2": "nan"}, "LayerNorm makes inf a nan"


@pytest.mark.compiles
def test_compiled_parts_are_compiled_and_give_the_same_losses(run_training, notes):
    torch.manual_seed(0)
    plain = LinearBox()
    compiled = deepcopy(plain)
    torch._dynamo.utils.counters.clear()

    run_training("plain", objective=plain, changes={"steps": 3})
    run_training("compiled", objective=compiled, compiled=[compiled.head], changes={"steps": 3, "compile": True})

    losses = [line["l2"] for line in notes.measured_lines]
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
