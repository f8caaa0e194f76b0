"""A dry run counts parameters, estimates memory and time, and shows the first batch."""

from __future__ import annotations

import pytest
import torch

from refcli.config.schema import FinetuneSettings
from refcli.contracts.batch import Batch, Targets
from refcli.engine.loop import Feed
from refcli.engine.measuring.step_time import StepTime
from refcli.grounder import Grounder
from refcli.model.flops import training_work
from refcli.recipes import preview
from refcli.recipes.preview import preview_lines
from refcli.recipes.training import Data, TrainingParts

CPU = torch.device("cpu")
PEAK = 4e9
NO_DATA = Data(None, None, None)


class Masking(Grounder):
    """Knows the work of its batches, and masks something."""

    def work(self, batch):
        return training_work(self.tower, batch)

    def num_masked(self, batch, step):
        return {"patches": 1000 * len(batch.ids)} if step % 2 == 0 else {"words": len(batch.ids)}


@pytest.fixture
def batch() -> Batch:
    """Five pairs of 32 x 32 pixels; one of seven words is padding in the last, which has no target."""
    is_pad = torch.zeros(5, 7, dtype=torch.bool)
    is_pad[4, 6] = True
    exists = torch.tensor([True, True, True, True, False])
    targets = Targets(torch.full((5, 4), 0.5), torch.ones(5, 32, 32, dtype=torch.bool), exists, exists)
    return Batch(torch.zeros(5, 3, 32, 32), torch.full((5, 7), 4), is_pad, targets, tuple("abcde"))


@pytest.fixture
def lines_of(monkeypatch, batch):
    """The lines for a model of the settings, on a device of known speed."""
    monkeypatch.setattr(preview, "gemm_peak", lambda device, precision: PEAK)

    def run(settings: FinetuneSettings, kind=Masking, *, frozen=False) -> tuple[list[str], Grounder]:
        grounder = kind.from_settings(settings.model)
        named = {"tower": grounder.tower, "head oneref": grounder.head}
        feed = Feed(lambda start: (batch for _ in range(2)))
        parts = TrainingParts(grounder, feed, NO_DATA, named, frozen=(grounder.tower,) if frozen else ())
        return preview_lines(parts, settings, device=CPU), grounder

    return run


def change(settings: FinetuneSettings, **train) -> FinetuneSettings:
    return settings.model_copy(update={"train": settings.train.model_copy(update=train)})


def test_parameters_are_counted_by_part(lines_of, settings):
    lines, grounder = lines_of(settings)
    tower, head = (sum(p.numel() for p in part.parameters()) for part in (grounder.tower, grounder.head))

    assert lines[:3] == [
        f"tower: {tower:,} parameters",
        f"head oneref: {head:,} parameters",
        f"in all: {tower + head:,} parameters",
    ]


def test_frozen_parts_are_marked(lines_of, settings):
    lines, grounder = lines_of(settings, frozen=True)
    head = sum(p.numel() for p in grounder.head.parameters())

    assert lines[0].endswith("parameters (frozen)")
    assert lines[1].endswith("parameters")
    assert lines[2].endswith(f"parameters, {head:,} of them trained")


def test_the_first_batch_is_shown_with_its_masked_parts(lines_of, settings):
    text = "\n".join(lines_of(settings)[0])

    assert "images (5, 3, 32, 32), token_ids (5, 7) (34 real), masks (5, 32, 32), 4 with a referent" in text
    assert "hidden in step 0: 5,000 patches" in text
    assert "hidden in step 1: 5 words" in text


def test_memory_is_a_sum_of_terms_with_the_other_choice_beside_it(lines_of, settings):
    text = "\n".join(lines_of(settings)[0])
    without = "\n".join(lines_of(change(settings, ema_decay=None))[0])

    for term in ("weights", "gradients", "state of adamw", "average", "activations"):
        assert term in text
    assert "average" not in without
    assert "activations with model.tower.checkpoint_activations:" in text


@pytest.mark.parametrize("accumulate", [1, 4])
def test_time_is_that_of_a_measured_step(lines_of, settings, batch, monkeypatch, accumulate):
    measured = StepTime(passes=0.02, update=0.01, num_samples=3)
    monkeypatch.setattr(preview, "measure_step", lambda *given, **named: measured)
    monkeypatch.setattr(preview, "step_seconds", lambda *given, accumulate, **named: 0.02 * accumulate + 0.01)
    lines, grounder = lines_of(change(settings, accumulate=accumulate, steps=500))
    seconds = 0.02 * accumulate + 0.01
    (line,) = (line for line in lines if line.startswith("time:"))

    assert f"about {1000 * seconds:.1f} s per 1,000 steps, {500 * seconds:.1f} s in all" in line
    assert "measured on 3 of 5 samples" in line
    share = training_work(grounder.tower, batch).flops / (0.02 * PEAK)
    assert any(f"{share:.0%} of the 4 GFLOP/s" in line for line in lines)


def test_an_objective_without_work_and_masks_has_no_such_lines(lines_of, settings):
    class Plain(Grounder):
        work = None

    text = "\n".join(lines_of(settings, Plain)[0])

    assert "time:" not in text
    assert "hidden" not in text
    assert "memory:" in text
