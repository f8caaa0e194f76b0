"""Stages of one run: one after the other, each from the previous weights, resumed to the bit wherever stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch

from refcli.config.load import apply_overrides, stages_of, validate
from refcli.config.schema import FinetuneSettings
from refcli.engine.reporting.reporters import SilentReporter
from refcli.engine.stopping import StoppedError
from refcli.errors import ConfigError, DataError, UsageError, WeightsError
from refcli.recipes.finetune import finetune, preview
from refcli.weights.directory import load_weights

NO_BOX_FREE = "stages.frozen.model.head.settings.loss_weights.similarity_focal=0"


@pytest.fixture
def staged(settings) -> FinetuneSettings:
    """Three steps of the heads on a frozen tower, then four steps of everything."""
    return changed(
        settings,
        "stages.frozen.train={freeze_tower: true, steps: 3, batch_size: 4}",
        "stages.frozen.optim.lr=1e-2",
        NO_BOX_FREE,
        "stages.all.train={steps: 4, validate_every: 3}",
        "data.workers=0",
    )


def changed(settings: FinetuneSettings, *overrides: str) -> FinetuneSettings:
    return validate(FinetuneSettings, apply_overrides(settings.model_dump(), overrides), where="this test")


class RecordingReporter(SilentReporter):
    """Keeps the notes, and sends this process a SIGTERM when a step of a stage is done."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.notes: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.stop = stop

    def noted(self, text: str) -> None:
        self.notes.append(text)

    def started(self, *, step: int, total: int) -> None:
        self.starts.append((step, total))

    def stepped(self, step: int) -> None:
        if (len(self.starts), step) == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def run(settings, store, out, *, stop=None, **options) -> RecordingReporter:
    reporter = RecordingReporter(stop)
    finetune(settings, store_path=store, out=out, reporter=reporter, **options)
    return reporter


@pytest.fixture
def whole(tmp_path, store, staged):
    """The uninterrupted run of both stages."""
    run(staged, store, tmp_path / "whole")
    return tmp_path / "whole"


def weights_of(directory):
    return (directory / "model.safetensors").read_bytes()


def tower_of(weights):
    return load_weights(str(weights), device="cpu", dtype=torch.float32).grounder.tower.state_dict()


def test_stages_equal_runs_chained_by_hand(tmp_path, store, staged, whole):
    first, second = stages_of(staged).values()
    run(first, store, tmp_path / "1")
    run(changed(second, f"train.init_weights={tmp_path / '1' / 'weights'}"), store, tmp_path / "2")

    assert weights_of(tmp_path / "1" / "weights") == weights_of(whole / "stages" / "1-frozen" / "weights")
    assert weights_of(tmp_path / "2" / "weights") == weights_of(whole / "weights")


def test_the_tower_is_frozen_in_the_first_stage_and_learns_in_the_second(tmp_path, store, staged, whole):
    run(changed(stages_of(staged)["frozen"], "train.steps=1"), store, tmp_path / "shorter")
    early, later = tower_of(tmp_path / "shorter" / "weights"), tower_of(whole / "stages" / "1-frozen" / "weights")
    final = tower_of(whole / "weights")

    assert all(torch.equal(later[name], tensor) for name, tensor in early.items())
    assert any(not torch.equal(later[name], tensor) for name, tensor in final.items())


def test_the_run_directory_has_a_run_for_each_stage_and_the_weights_of_the_last(whole):
    meta = json.loads((whole / "weights" / "meta.json").read_text())
    steps = [
        [json.loads(line)["step"] for line in (whole / "stages" / name / "metrics.jsonl").read_text().splitlines()][-1]
        for name in ("1-frozen", "2-all")
    ]

    assert sorted(path.name for path in whole.iterdir()) == ["env.json", "run.yaml", "stages", "weights"]
    assert steps == [3, 4]
    assert (meta["stage"], meta["steps_of_stages"]) == ("all", {"frozen": 3, "all": 4})
    assert not (whole / "stages" / "2-all" / "weights").exists()


@pytest.mark.parametrize("stop", [(1, 2), (1, 3), (2, 1), (2, 4)])
def test_a_stopped_and_resumed_run_writes_the_same_weights_to_the_bit(tmp_path, store, staged, whole, stop):
    out = tmp_path / "parts"
    with pytest.raises(StoppedError):
        run(staged, store, out, stop=stop)
    reporter = run(staged, store, out, resume=True)

    assert weights_of(out / "weights") == weights_of(whole / "weights")
    assert reporter.starts == ([(stop[1], 3), (0, 4)] if stop[0] == 1 else [(stop[1], 4)])


@pytest.mark.parametrize("leftover", [None, ".run.yaml.0123456789abcdef.refcli-part"])
def test_a_run_killed_between_its_stages_continues_with_the_next(tmp_path, store, staged, whole, leftover):
    expected = weights_of(whole / "weights")
    for path in (whole / "stages" / "2-all", whole / "weights"):
        shutil.rmtree(path)
    if leftover:
        (whole / "stages" / "2-all").mkdir()
        (whole / "stages" / "2-all" / leftover).touch()
    reporter = run(staged, store, whole, resume=True)

    assert reporter.starts == [(0, 4)]
    assert weights_of(whole / "weights") == expected


@pytest.mark.parametrize("change", ["stages.frozen.train.steps=5", "stages.frozen.optim.lr=1e-4"])
def test_a_finished_stage_cannot_be_changed_and_the_run_stays_as_it_is(store, staged, whole, change):
    before = (whole / "run.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"frozen, is finished and cannot change (train\.steps|optim\.lr)"):
        run(changed(staged, change), store, whole, resume=True)
    assert (whole / "run.yaml").read_bytes() == before


def test_another_run_in_the_same_place_needs_force_and_removes_the_first(store, staged, whole):
    with pytest.raises(UsageError, match="not empty"):
        run(staged, store, whole)
    assert (whole / "stages" / "1-frozen" / "weights").is_dir()
    other = changed(staged, "train.seed=7")
    before = weights_of(whole / "weights")
    reporter = run(other, store, whole, force=True)

    assert reporter.starts == [(0, 3), (0, 4)]
    assert weights_of(whole / "weights") != before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("data.validation=['squares:vla']", DataError),
        ("model.text.tokenizer=nowhere.spm", WeightsError),
        ("stages.all.model.head.settings.mask_dimm=3", ConfigError),
        ("train.init_weights=nowhere", UsageError),
    ],
)
def test_mistakes_in_a_stage_are_found_before_anything_is_removed_or_trained(
    tmp_path, store, staged, whole, change, error
):
    before = weights_of(whole / "weights")
    for out in (whole, tmp_path / "new"):
        with pytest.raises(error):
            run(changed(staged, change), store, out, force=True)
    assert weights_of(whole / "weights") == before
    assert (whole / "stages" / "1-frozen" / "weights").is_dir()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("launch", "starts"), [("one", [(2, 3), (0, 4)]), ("two", [(0, 3), (0, 4)])])
def test_force_removes_the_run_of_an_earlier_launch_but_not_one_that_this_launch_began_before_a_crash(
    tmp_path, store, staged, whole, monkeypatch, launch, starts
):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.yaml").write_text("# refcli 0.0.1\nof: long ago")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.raises(StoppedError):
        run(staged, store, out, force=True, stop=(1, 2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    reporter = run(staged, store, out, force=True)

    assert reporter.starts == starts
    assert weights_of(out / "weights") == weights_of(whole / "weights")


def test_a_frozen_tower_with_random_weights_is_reported(tmp_path, store, staged, whole):
    reported = [note for note in run(staged, store, tmp_path / "run").notes if "random weights" in note]
    given = run(changed(staged, f"train.init_weights={whole / 'weights'}"), store, tmp_path / "given").notes

    assert len(reported) == 1
    assert not any("random weights" in note for note in given)


def test_each_stage_is_announced(tmp_path, store, staged):
    notes = run(staged, store, tmp_path / "run").notes

    assert [note for note in notes if note.startswith("stage")] == ["stage 1 of 2, frozen", "stage 2 of 2, all"]
    assert f"started from {tmp_path / 'run' / 'stages' / '1-frozen' / 'weights'}" in notes


def test_a_dry_run_shows_every_stage(store, staged):
    lines = preview(staged, store_path=store)
    first, second = lines[: lines.index("stage 2 of 2, all:")], lines[lines.index("stage 2 of 2, all:") :]

    assert first[0] == "stage 1 of 2, frozen:"
    assert any("(frozen)" in line for line in first)
    assert not any("(frozen)" in line for line in second)
    assert any("images (4, 3, 32, 32)" in line for line in first)
    assert any("images (5, 3, 32, 32)" in line for line in second)


def test_a_finished_run_continues_in_its_last_stage(store, staged, whole):
    reporter = run(
        changed(staged, "stages.all.train.steps=6", "stages.all.train.log_every=2"), store, whole, resume=True
    )

    assert reporter.starts == [(4, 6)]


def test_a_run_without_stages_leaves_none_of_an_earlier_one(store, settings, whole):
    run(changed(settings, "train.steps=1", "data.workers=0"), store, whole, force=True)

    assert not (whole / "stages").exists()
