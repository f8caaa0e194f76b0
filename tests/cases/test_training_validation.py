"""Progress is saved before each validation, which may fail, be stopped, or never end."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from refcli.data.sources.synthetic.write import write_synthetic
from refcli.errors import DataError
from refcli.evaluation import validation as model_frame
from refcli.recipes import finetune, pretrain

SMALL = ["model.tower.dim=32", "model.tower.layers=1", "model.tower.ffn_dim=32", "model.tower.heads=2"]
SETTINGS = ["data.workers=0", "train.batch_size=2", "train.steps=4", "train.validate_every=2", "train.save_every=1000"]
SETTINGS += ["train.log_every=1", "optim.warmup_steps=1", "train.precision=fp32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    write_synthetic(path, size=2, seed=3, splits=["train", "val"])
    return path


@pytest.fixture
def store(data, tmp_path) -> Path:
    shutil.copytree(data, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def train(refcli, store, tmp_path):
    def call(*options: str, command: str = "finetune"):
        sets = [part for one in [*SETTINGS, *SMALL] for part in ("--set", one)]
        out = ["--data", store, "--device", "cpu", "--out", tmp_path / "run"]
        return refcli(command, "--preset", "synthetic_tiny", *out, *sets, *options)

    return call


@pytest.fixture
def resume(refcli, tmp_path):
    return lambda *options, command="finetune": refcli(command, "--out", tmp_path / "run", "--resume", *options)


def saved_steps(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))


def validated_steps(tmp_path: Path) -> list[int]:
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "validation/score" in line]


class Failing:
    """Replaces a validation; the first call fails after one batch."""

    def __init__(self, real, go_wrong) -> None:
        self.real = real
        self.go_wrong = go_wrong
        self.calls = 0
        self.batches = 0

    def __call__(self, model, batches, **how):
        self.calls += 1
        return self.real(model, batches if self.calls > 1 else self._first(batches), **how)

    def _first(self, batches):
        for batch in batches:
            self.batches += 1
            if self.batches == 1:
                self.go_wrong()
            yield batch


@pytest.fixture
def failing(monkeypatch):
    def install(go_wrong) -> Failing:
        watch = Failing(model_frame.validate, go_wrong)
        monkeypatch.setattr(finetune, "validate", watch)
        return watch

    return install


def raising(error: BaseException):
    def go_wrong():
        raise error

    return go_wrong


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("an image is gone"), 5),
        (RuntimeError("CUDA out of memory"), 1),
        pytest.param(KeyboardInterrupt(), 130, marks=pytest.mark.slow),
    ],
    ids=["data", "memory", "keyboard"],
)
def test_a_validation_that_fails_loses_no_step(tmp_path, train, resume, failing, error, code):
    failing(raising(error))

    assert train()[0] == code
    assert saved_steps(tmp_path) == ["step-00000002"]
    assert validated_steps(tmp_path) == []
    code, _, stderr = resume()
    assert code == 0, stderr
    assert "started after step 2" in (tmp_path / "run" / "log.txt").read_text()
    assert validated_steps(tmp_path) == [2, 4]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_a_validation_ends_it_at_the_next_batch_and_a_resumed_run_repeats_it(
    tmp_path, train, resume, failing, number, code
):
    watch = failing(lambda: os.kill(os.getpid(), number))
    left, _, stderr = train()

    assert (left, watch.batches) == (code, 1)
    assert f"stopped by {number.name} after step 2; the checkpoint is saved" in stderr
    assert saved_steps(tmp_path) == ["step-00000002"]
    assert validated_steps(tmp_path) == []
    code, _, stderr = resume()
    assert code == 0, stderr
    assert (watch.calls, validated_steps(tmp_path)) == (3, [2, 4])


def test_a_signal_during_the_last_validation_is_acted_on_and_the_run_can_be_finished(tmp_path, train, resume, failing):
    failing(lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert train("--set", "train.validate_every=null", "--set", "train.steps=2")[0] == 75
    assert not (tmp_path / "run" / "weights").exists()
    assert resume()[0] == 0
    assert validated_steps(tmp_path) == [2]
    assert (tmp_path / "run" / "weights" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_signal_during_the_repeated_validation_leaves_it_due(tmp_path, train, resume, failing):
    failing(raising(DataError("an image is gone")))
    assert train()[0] == 5
    failing(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert resume()[0] == 75
    assert saved_steps(tmp_path) == ["step-00000002"]
    assert resume()[0] == 0
    assert validated_steps(tmp_path) == [2, 4]


@pytest.mark.slow
def test_a_signal_stops_a_validation_of_pretraining_too(tmp_path, train, resume, monkeypatch):
    watch = Failing(pretrain.mean_losses, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(pretrain, "mean_losses", watch)
    code, _, stderr = train(command="pretrain")

    assert (code, watch.batches) == (75, 1), stderr
    assert saved_steps(tmp_path) == ["step-00000002"]
    assert resume(command="pretrain")[0] == 0
    assert validated_steps(tmp_path) == [2, 4]


def test_a_run_killed_after_a_validation_neither_repeats_nor_forgets_it(tmp_path, train, resume, failing):
    watch = failing(lambda: None)
    assert train()[0] == 0
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")  # as if the run had been killed before that save
    (tmp_path / "run" / "checkpoints" / "best.json").unlink()
    assert resume()[0] == 0

    assert watch.calls == 3, "steps 2 and 4, and 4 again"
    assert validated_steps(tmp_path) == [2, 4]
    assert json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text()) == best


@pytest.mark.parametrize("dry", [False, True])
def test_missing_images_of_the_validation_are_reported_before_the_first_step(tmp_path, store, train, dry):
    gone = sorted((store / "synthetic" / "images" / "val").rglob("*.jpg"))[1]
    gone.unlink()
    code, _, stderr = train(*(["--dry-run"] if dry else []))

    assert "warning: an image of the validation cannot be found" in stderr
    assert str(gone) in stderr
    assert code == (0 if dry else 1)
    if not dry:
        assert saved_steps(tmp_path) == ["step-00000002"]
        assert stderr.index("warning:") < stderr.index("step 1 ")


SLOW_DAMAGE = [b"\xff\xfe\n", b"[]\n{}\nnull\n", b"[" * 999]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "validation/sc',
        b'{"step": "two"}\n{"step": 1e99}\n',
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in SLOW_DAMAGE),
    ],
)
def test_odd_lines_among_the_metrics_do_not_stop_a_run_from_resuming(tmp_path, train, resume, damage):
    assert train("--set", "train.steps=2")[0] == 0
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    code, _, stderr = resume("--set", "train.steps=3")

    assert code == 0, stderr
    assert validated_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("best_by", "changes", "has"),
    [
        ("mask_iou", ["model.head.settings.res=false"], "box_accuracy, box_iou"),
        ("box_accuracy", ["model.head.settings.rec=false"], "mask_accuracy, mask_iou"),
        ("existence_accuracy", ["model.head.settings.existence=false"], "box_iou, mask_iou, score"),
    ],
)
def test_a_metric_that_the_validation_does_not_measure_is_refused_before_the_first_step(
    tmp_path, train, best_by, changes, has, dry
):
    sets = [part for one in [f"train.best_by={best_by}", *changes] for part in ("--set", one)]
    code, _, stderr = train(*sets, *(["--dry-run"] if dry else []))

    assert code == 2, stderr
    assert f"the validation does not measure {best_by}" in stderr and "train.best_by" in stderr
    assert has in stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_pretraining_can_select_by_its_score_only(tmp_path, train, dry):
    code, _, stderr = train("--set", "train.best_by=box_iou", *(["--dry-run"] if dry else []), command="pretrain")

    assert code == 2, stderr
    assert "train.best_by is for fine-tuning" in stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_validation_samples_without_masks_cannot_select_by_masks(refcli, tmp_path, train, store):
    boxes = store / "boxes.jsonl"
    image = next((store / "synthetic" / "images" / "val").rglob("*.jpg"))
    boxes.write_text(json.dumps({"image": str(image), "expression": "the ball", "box": [1, 2, 30, 40]}) + "\n")
    code, _, stderr = refcli("prepare-data", "--from", boxes, "--name", "mine", "--split", "val", "--out", store)
    assert code == 0, stderr
    code, _, stderr = train("--set", "data.validation=[mine:val]", "--set", "train.best_by=mask_iou")

    assert code == 2, stderr
    assert "the validation does not measure mask_iou" in stderr


def test_a_later_stage_that_cannot_select_is_refused_before_the_first(tmp_path, train):
    stages = "{first: {optim: {lr: 0.1}}, second: {train: {best_by: existence_accuracy}}}"
    sets = ["model.head.settings.existence=false", f"stages={stages}"]
    code, _, stderr = train(*(part for one in sets for part in ("--set", one)))

    assert code == 2, stderr
    assert "the validation does not measure existence_accuracy" in stderr
    assert not list((tmp_path / "run").rglob("checkpoints"))
