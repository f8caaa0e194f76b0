"""Fine-tuning from a store to weights: it learns, resumes to the bit, starts from weights, and refuses misfits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from refcli.config.explain import explain
from refcli.config.load import apply_overrides, validate
from refcli.config.schema import FinetuneSettings, HeadChoice
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import SilentReporter
from refcli.engine.stopping import StoppedError
from refcli.errors import ConfigError, ImageError
from refcli.heads.table import with_head_defaults
from refcli.model.positions import resample_vision_positions
from refcli.recipes.finetune import build, finetune, preview
from refcli.weights.directory import load_weights
from refcli.weights.layout import HeadOnlySettings

ALONE = World(0, 1, torch.device("cpu"))


def changed(settings: FinetuneSettings, *overrides: str) -> FinetuneSettings:
    return validate(FinetuneSettings, apply_overrides(settings.model_dump(), overrides), where="this test")


class StopAt(SilentReporter):
    """Sends this process a SIGTERM when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def lines_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = (
        "seconds",
        "samples_per_second",
        "tokens_per_second",
        "flops_utilisation",
        "waiting_for_data",
        "validation/seconds",
    )
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


@pytest.mark.parametrize("stop", [3, 4])
def test_a_stopped_and_resumed_run_writes_the_same_weights_to_the_bit(tmp_path, store, settings, stop):
    finetune(settings, store_path=store, out=tmp_path / "whole", reporter=SilentReporter())
    with pytest.raises(StoppedError):
        finetune(settings, store_path=store, out=tmp_path / "parts", reporter=StopAt(stop))
    finetune(settings, store_path=store, out=tmp_path / "parts", resume=True, reporter=SilentReporter())

    whole, parts = ((tmp_path / name / "weights" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    steps = [line for line in lines_of(tmp_path / "whole") if "loss" in line]
    assert [line for line in lines_of(tmp_path / "parts") if "loss" in line] == steps


def test_the_number_of_loading_processes_changes_nothing(tmp_path, store, settings):
    for workers in (0, 2):
        new = changed(settings, f"data.workers={workers}", "train.steps=3")
        finetune(new, store_path=store, out=tmp_path / str(workers), reporter=SilentReporter())

    assert lines_of(tmp_path / "0") == lines_of(tmp_path / "2")


def test_it_learns_where_the_squares_are(tmp_path, store, settings):
    longer = changed(settings, "train.steps=150", "train.validate_every=150", "train.batch_size=16", "data.workers=0")
    finetune(
        changed(longer, "model.tower.drop_path=0", "data.augment={}"),
        store_path=store,
        out=tmp_path / "run",
        reporter=SilentReporter(),
    )

    scores = lines_of(tmp_path / "run")[-1]
    assert scores["validation/box_iou"] > 0.5
    assert scores["validation/mask_iou"] > 0.5


def test_the_weights_are_the_average_and_answer(tmp_path, store, settings):
    weights = finetune(settings, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    loaded = load_weights(str(weights), device="cpu", dtype=torch.float32)
    parts = build(settings, store_path=store, world=ALONE)
    batch = next(parts.feed.batches(0))

    as_trained = changed(settings, "model.head.settings.existence=false").model  # every sample has a target
    assert loaded.settings == with_head_defaults(as_trained), "a later version may have other defaults"
    assert loaded.settings.head.settings["loss_weights"]["box_giou"] == 1.0
    assert loaded.meta["averaged"] is True
    prediction = loaded.grounder.predict(batch.images, batch.token_ids, batch.token_is_pad)
    assert prediction.boxes_xyxy.isfinite().all()
    scores = parts.feed.validate(loaded.grounder)
    assert scores == pytest.approx(
        {key.removeprefix("validation/"): value for key, value in lines_of(tmp_path / "run")[-1].items() if "/" in key}
    )


def test_init_continues_from_the_weights_of_another_run(tmp_path, store, settings):
    weights = finetune(settings, store_path=store, out=tmp_path / "one", reporter=SilentReporter())
    parts = build(changed(settings, f"train.init_weights={weights}"), store_path=store, world=ALONE)

    before = load_weights(str(weights), device="cpu", dtype=torch.float32).grounder.state_dict()
    now = parts.objective.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in before.items())
    assert all(name.startswith("head.existence.") for name in now.keys() - before.keys())  # nothing trained it


def test_init_at_another_image_size_resamples_the_vision_positions(tmp_path, store, settings):
    weights = finetune(
        changed(settings, "train.steps=1"), store_path=store, out=tmp_path / "one", reporter=SilentReporter()
    )
    larger = changed(settings, "model.tower.image_size=48", f"train.init_weights={weights}")
    parts = build(larger, store_path=store, world=ALONE)

    before = load_weights(str(weights), device="cpu", dtype=torch.float32).grounder.tower.state_dict()
    after = parts.objective.tower.state_dict()
    old, new = before.pop("vision_embedding.positions"), after.pop("vision_embedding.positions")
    grids = settings.model.tower.grid, larger.model.tower.grid
    assert grids[0] != grids[1]
    assert torch.equal(new, resample_vision_positions(old, old_grid=grids[0], new_grid=grids[1]))
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert any("resampled" in note for note in parts.notes)


def test_a_resumed_run_does_not_need_the_weights_that_it_started_from(tmp_path, store, settings):
    weights = finetune(
        changed(settings, "train.steps=1"), store_path=store, out=tmp_path / "one", reporter=SilentReporter()
    )
    second = changed(settings, f"train.init_weights={weights}", "train.steps=2")
    finetune(second, store_path=store, out=tmp_path / "two", reporter=SilentReporter())
    shutil.rmtree(tmp_path / "one")
    longer = changed(second, "train.steps=3")
    finetune(longer, store_path=store, out=tmp_path / "two", resume=True, reporter=SilentReporter())

    assert max(line["step"] for line in lines_of(tmp_path / "two")) == 3


@pytest.mark.parametrize(
    ("override", "part"), [("model.tower.ffn_dim=128", "tower"), ("model.head.settings.similarity_scale=null", "head")]
)
def test_weights_that_do_not_fit_the_settings_are_refused_by_tensor(tmp_path, store, settings, override, part):
    weights = finetune(
        changed(settings, "train.steps=1"), store_path=store, out=tmp_path / "one", reporter=SilentReporter()
    )

    with pytest.raises(ConfigError, match=rf"do not fit the settings .*{part}\.") as caught:
        build(changed(settings, override, f"train.init_weights={weights}"), store_path=store, world=ALONE)
    assert f"model.{part}" in caught.value.hint


def test_a_tokenizer_with_more_ids_than_the_tower_embeds_is_refused(store, settings):
    with pytest.raises(ConfigError) as caught:
        build(changed(settings, "model.tower.vocabulary_size=50"), store_path=store, world=ALONE)

    assert caught.value.where == "model.tower.vocabulary_size"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_training_with_its_path(tmp_path, store, settings, workers):
    image = store / "squares" / "images" / "train-3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:40])
    try:
        with pytest.raises(ImageError) as caught:
            finetune(
                changed(settings, f"data.workers={workers}"),
                store_path=store,
                out=tmp_path / "run",
                reporter=SilentReporter(),
            )
    finally:
        image.write_bytes(whole)

    assert "train-3.png" in caught.value.where


def test_a_head_that_predicts_nothing_is_refused(tmp_path, store, settings):
    nothing = changed(settings, "model.head.settings={rec: false, res: false, existence: true}")
    with pytest.raises(ConfigError, match="neither boxes nor masks"):
        finetune(nothing, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    assert not (tmp_path / "run").exists()


def test_preview_counts_parameters_and_shows_shapes(store, settings):
    text = "\n".join(preview(settings, store_path=store))
    grounder = build(settings, store_path=store, world=ALONE).objective

    assert f"tower: {sum(p.numel() for p in grounder.tower.parameters()):,} parameters" in text
    assert "24 for training, 8 for validation" in text
    assert "images (5, 3, 32, 32)" in text


@pytest.mark.slow
def test_the_command_trains_prints_the_run_and_resumes_with_the_same_settings(tmp_path, store, settings):
    preset, run = tmp_path / "mine.yaml", tmp_path / "run"
    preset.write_text(explain(settings))

    def refcli(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "refcli", "finetune", *arguments, "--out", str(run)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    dry = refcli("--preset", str(preset), "--data", str(store), "--dry-run")
    assert (dry.returncode, run.exists()) == (0, False)
    assert dry.stdout == explain(settings)
    first = refcli("--preset", str(preset), "--data", str(store), "--set", "train.steps=3")
    assert (first.returncode, first.stdout) == (0, f"{run}\n"), first.stderr
    again = refcli("--preset", str(preset), "--data", str(store))
    assert again.returncode == 2
    assert "--resume" in again.stderr
    longer = refcli("--resume", "--set", "train.steps=5")
    assert longer.returncode == 0, longer.stderr
    assert "continuing after step 3" in longer.stderr
    assert max(line["step"] for line in lines_of(run)) == 5


def test_the_tower_comes_from_one_run_and_the_head_from_weights_of_a_head_alone(tmp_path, store, settings):
    tower = finetune(
        changed(settings, "train.steps=1"), store_path=store, out=tmp_path / "one", reporter=SilentReporter()
    )
    head = {"dim": 16, "pyramid_channels": [8, 8, 8, 16], "lite": True}
    other = settings.model_copy(
        update={"model": settings.model.model_copy(update={"head": HeadChoice(name="cgformer", settings=head)})}
    )
    decoder = {
        f"head.{key}": tensor + 1 if tensor.is_floating_point() else tensor
        for key, tensor in build(other, store_path=store, world=ALONE).objective.head.state_dict().items()
        if key.startswith("decoder.")
    }
    (tmp_path / "decoder").mkdir()
    save_file(decoder, tmp_path / "decoder" / "model.safetensors")
    values = HeadOnlySettings(tower_dim=32, head=other.model.head).model_dump(mode="json")
    (tmp_path / "decoder" / "config.yaml").write_text(yaml.safe_dump(values))
    started = changed(other, f"train.init_weights={tower}", f"train.init_head={tmp_path / 'decoder'}")
    grounder = build(started, store_path=store, world=ALONE).objective

    before = load_weights(str(tower), device="cpu", dtype=torch.float32).grounder.state_dict()
    after = grounder.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if key.startswith("tower."))
    assert all(torch.equal(after[key], tensor) for key, tensor in decoder.items())
    saved = finetune(started, store_path=store, out=tmp_path / "two", reporter=SilentReporter())
    assert load_weights(str(saved)).meta["init_head"] == "decoder"
