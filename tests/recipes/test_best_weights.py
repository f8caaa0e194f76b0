"""Which weights a run keeps: the last, or the best by a named metric; and the gates on them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from refcli.config.load import apply_overrides, validate
from refcli.config.schema import FinetuneSettings
from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.reporting.reporters import SilentReporter
from refcli.engine.validation import read_validations
from refcli.errors import ConfigError, DataError, ExitCode, GateError, UsageError
from refcli.recipes import finetune as recipe
from refcli.recipes.finetune import finetune
from refcli.recipes.validation import check_floors, parse_floors
from refcli.weights.directory import load_weights

BOX = {2: 0.5, 4: 0.3, 6: 0.4}
MASK = {2: 0.1, 4: 0.6, 6: 0.2}


@pytest.fixture
def changed(settings):
    """The settings with changes; they validate after steps 2, 4 and 6."""

    def change(*overrides: str) -> FinetuneSettings:
        values = apply_overrides(settings.model_dump(), ["data.workers=0", *overrides])
        return validate(FinetuneSettings, values, where="this test")

    return change


@pytest.fixture
def scripted(monkeypatch):
    """Validations that find box_iou and mask_iou as in BOX and MASK, whatever the model answers."""
    steps = iter([*BOX, *BOX])

    def run(model, batches, *, bf16):
        step = next(steps)
        return {"box_iou": BOX[step], "mask_iou": MASK[step], "score": (BOX[step] + MASK[step]) / 2}

    monkeypatch.setattr(recipe, "validate", run)


def run(settings, store, out, **options):
    finetune(settings, store_path=store, out=out, reporter=SilentReporter(), **options)
    return out


def state_of(weights):
    return load_weights(str(weights), device="cpu", dtype=torch.float32).grounder.state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize(("best_by", "step"), [("box_iou", 2), ("mask_iou", 4), ("score", 4)])
@pytest.mark.parametrize("ema", ["0.9", "null"])
def test_the_best_weights_are_those_of_the_metric_that_was_named(
    tmp_path, store, changed, scripted, best_by, step, ema
):
    settings = changed(f"train.best_by={best_by}", "train.keep=best", f"train.ema_decay={ema}")
    out = run(settings, store, tmp_path / "run")
    file = "ema.safetensors" if settings.train.ema_decay else "model.safetensors"
    checkpoint = load_file(Checkpoints(out / "checkpoints").path(step) / file)

    assert Checkpoints(out / "checkpoints").pointer("best").step == step
    assert same(state_of(out / "weights"), checkpoint)
    assert not same(checkpoint, load_file(Checkpoints(out / "checkpoints").path(6) / file))


def test_the_last_weights_are_kept_by_default(tmp_path, store, changed, scripted):
    out = run(changed("train.best_by=box_iou"), store, tmp_path / "run")

    assert same(state_of(out / "weights"), load_file(out / "checkpoints" / "step-00000006" / "ema.safetensors"))


def test_an_unmeasured_metric_is_refused_and_the_measured_ones_are_named(tmp_path, store, changed, scripted):
    with pytest.raises(ConfigError, match="does not measure existence_accuracy") as caught:
        run(changed("train.best_by=existence_accuracy"), store, tmp_path / "run")

    assert caught.value.where == "train.best_by"
    assert caught.value.hint.endswith("box_iou, mask_iou, score")


def test_a_damaged_best_checkpoint_is_reported(tmp_path, store, changed, scripted):
    settings = changed("train.best_by=box_iou", "train.keep=best")
    out = run(settings, store, tmp_path / "run")
    (out / "checkpoints" / "step-00000002" / "ema.safetensors").write_bytes(b"x")

    with pytest.raises(DataError, match="best checkpoint is damaged") as caught:
        run(settings, store, out, resume=True)
    assert "train.keep=last" in caught.value.hint


@pytest.mark.parametrize(
    ("keep", "floors", "missed"),
    [
        ("last", ["box_iou=0.4", "mask_iou=0.2"], None),
        ("last", ["box_iou=0.45"], "box_iou is 0.4000 after step 6, wanted 0.45"),
        ("best", ["box_iou=0.45"], None),
        ("best", ["mask_iou=0.11"], "mask_iou is 0.1000 after step 2, wanted 0.11"),
        ("last", ["existence_accuracy=0"], "existence_accuracy was not measured"),
    ],
)
def test_the_kept_weights_must_reach_the_floors(tmp_path, store, changed, scripted, keep, floors, missed):
    settings = changed("train.best_by=box_iou", f"train.keep={keep}")
    if missed is None:
        run(settings, store, tmp_path / "run", floors=parse_floors(floors))
    else:
        with pytest.raises(GateError) as caught:
            run(settings, store, tmp_path / "run", floors=parse_floors(floors))
        assert missed in caught.value.message
        assert caught.value.exit_code == ExitCode.GATE == 4

    assert (tmp_path / "run" / "weights" / "model.safetensors").is_file()
    assert [metrics["box_iou"] for metrics in read_validations(tmp_path / "run").values()] == list(BOX.values())


def test_floors_without_validation_are_refused_before_training(tmp_path, store, changed):
    with pytest.raises(ConfigError, match="needs validation splits"):
        run(changed("data.validation=[]"), store, tmp_path / "run", floors={"score": 0.5})
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_never_validated_reaches_no_floor(tmp_path):
    check_floors(tmp_path, keep="last", floors={})
    with pytest.raises(GateError, match="score was not measured"):
        check_floors(tmp_path, keep="last", floors={"score": 0.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("box_acuracy=0.5", "did you mean 'box_accuracy'?"),
        ("score", "not a fraction"),
        ("score=85", "not a fraction"),
        ("score=high", "not a fraction"),
        ("score=nan", "not a fraction"),
    ],
)
def test_an_invalid_floor_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        parse_floors([text])
    assert message in str(caught.value)
    assert caught.value.where == f"--fail-under {text}"


@pytest.mark.parametrize(("patience", "last"), [(1, 4), (2, 6), (3, 8)])
def test_a_run_ends_when_validations_no_longer_improve(tmp_path, store, changed, scripted, patience, last):
    settings = changed("train.best_by=box_iou", f"train.patience={patience}", "train.steps=8")
    out = run(settings, store, tmp_path / "run")

    assert list(read_validations(out)) == list(range(2, last + 1, 2))
    assert Checkpoints(out / "checkpoints").pointer("last").step == last
    assert f"ended after step {last}: {patience} validation" in (out / "log.txt").read_text()


def test_a_run_that_ended_early_stays_ended_and_continues_with_more_patience(tmp_path, store, changed, scripted):
    impatient = changed("train.best_by=box_iou", "train.patience=1")
    out = run(impatient, store, tmp_path / "run")
    before = (out / "weights" / "model.safetensors").read_bytes()
    run(impatient, store, out, resume=True)
    assert (out / "weights" / "model.safetensors").read_bytes() == before
    run(changed("train.best_by=box_iou", "train.patience=2"), store, out, resume=True)

    assert list(read_validations(out)) == [2, 4, 6]
    assert (out / "weights" / "model.safetensors").read_bytes() != before
