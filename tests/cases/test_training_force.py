"""`--force` removes what a run has written, and never a foreign file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from refcli.config.schema import FinetuneSettings
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.errors import UsageError

PRECIOUS = (
    "weights/precious.pth",
    "checkpoints/epoch9.ckpt",
    "checkpoints/step-00000005/notes.txt",
    "report/thesis.tex",
    "stages/notes.txt",
    "stages/1-mine/model.safetensors",
    "tensorboard/events.csv",
    ".log.txt.swp",
    "non_finite-step-1.json.bak",
    "train.py",
)
SETTINGS = ["data.workers=0", "data.validation=[]", "train.validate_every=null", "train.batch_size=2", "train.steps=2"]
SMALL = ["model.tower.dim=32", "model.tower.layers=1", "model.tower.ffn_dim=32", "model.tower.heads=2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    write_synthetic(path, size=2, seed=3, splits=["train"])
    return path


@pytest.fixture
def train(refcli, store):
    def call(out: Path, *options: str, command: str = "finetune", preset: str = "synthetic_tiny"):
        sets = [part for one in [*SETTINGS, *SMALL] for part in ("--set", one)]
        return refcli(
            command, "--preset", preset, "--data", store, "--device", "cpu", "--out", out, *sets, *options
        )  # fmt: skip

    return call


def put(folder: Path, names=PRECIOUS) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def is_untouched(folder: Path, names=PRECIOUS) -> bool:
    return all((folder / name).read_text() == "mine" for name in names)


@pytest.mark.parametrize(("command", "preset"), [("finetune", "synthetic_tiny"), ("pretrain", "synthetic_tiny")])
def test_a_folder_that_never_held_a_run_is_refused(train, tmp_path, command, preset):
    put(tmp_path / "proj", [*PRECIOUS, "log.txt", "metrics.jsonl", "weights/model.safetensors"])
    code, output, stderr = train(tmp_path / "proj", "--force", command=command, preset=preset)

    assert (code, output) == (2, "")
    assert "holds no run" in stderr
    assert is_untouched(tmp_path / "proj", [*PRECIOUS, "log.txt", "metrics.jsonl", "weights/model.safetensors"])


@pytest.mark.parametrize(
    "files",
    [
        {"run.yaml": "steps: 3\n", "env.json": "{}"},
        {"run.yaml": "# refcli 0.1.0: give this file as --preset to repeat the run\ntrain: {}\n"},
        {"run.yaml": "steps: 3\n", "env.json": '{"refcli": "0.1.0"}'},
        {"env.json": '{"refcli": "0.1.0"}'},
        {"run.yaml": "# refcli 0.1.0\n", "env.json": "["},
    ],
    ids=["of another tool", "only settings", "foreign settings", "only an environment", "damaged"],
)
def test_a_folder_that_looks_a_little_like_a_run_is_refused(tmp_path, files):
    put(tmp_path, ["weights/model.safetensors"])
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    with pytest.raises(UsageError, match="holds no run"):
        RunDir.open(tmp_path, FinetuneSettings(), resume=False, force=True, facts={})
    assert is_untouched(tmp_path, ["weights/model.safetensors"])
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_foreign_files_inside_a_run_survive_its_removal(train, tmp_path):
    run = tmp_path / "run"
    assert train(run)[0] == 0
    before = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    put(run)
    code, _, stderr = train(run, "--force", "--set", "train.steps=1")

    assert code == 0, stderr
    assert is_untouched(run)
    after = {path.relative_to(run) for path in run.rglob("*") if path.is_file()} - set(map(Path, PRECIOUS))
    swap = {Path(str(path).replace("step-00000002", "step-00000001")) for path in before}
    assert after == swap, "nothing of the old run is left"
    assert not (run / "checkpoints" / "step-00000002").exists()


def test_stages_of_a_run_are_removed_and_foreign_files_beside_them_stay(tmp_path):
    run = RunDir.open(tmp_path / "run", FinetuneSettings(), resume=False, force=False, facts={})
    stage = RunDir.open(run.path / "stages" / "1-warm", FinetuneSettings(), resume=False, force=False, facts={})
    stage.log("trained")
    put(stage.path, ["weights/mine.pth"])
    gone = RunDir.open(run.path / "stages" / "2-long", FinetuneSettings(), resume=False, force=False, facts={})
    put(run.path, ["stages/notes.txt", "stages/copy of 1/log.txt"])
    RunDir.open(run.path, FinetuneSettings(), resume=False, force=True, facts={})

    assert is_untouched(run.path, ["stages/notes.txt", "stages/copy of 1/log.txt", "stages/1-warm/weights/mine.pth"])
    assert not (stage.path / "run.yaml").exists()
    assert not gone.path.exists()


def test_nothing_behind_a_link_is_removed(tmp_path):
    put(tmp_path / "elsewhere", ["model.safetensors", "log.txt"])
    run = RunDir.open(tmp_path / "run", FinetuneSettings(), resume=False, force=False, facts={})
    (run.path / "weights").symlink_to(tmp_path / "elsewhere")
    (run.path / "log.txt").symlink_to(tmp_path / "elsewhere" / "log.txt")
    RunDir.open(run.path, FinetuneSettings(), resume=False, force=True, facts={})

    assert is_untouched(tmp_path / "elsewhere", ["model.safetensors", "log.txt"])


def test_a_run_killed_at_its_start_is_replaced(tmp_path):
    whole = RunDir.open(tmp_path / "run", FinetuneSettings(), resume=False, force=False, facts={})
    (whole.path / "env.json").unlink()
    RunDir.open(whole.path, FinetuneSettings(), resume=False, force=True, facts={})

    assert (whole.path / "env.json").is_file()


def test_a_checkpoint_with_foreign_files_is_not_removed(tmp_path):
    run = RunDir.open(tmp_path / "run", FinetuneSettings(), resume=False, force=False, facts={})
    for step in (5, 10, 15, 20):
        put(run.checkpoints.path(step), ["state.pt", "model.safetensors"])
    put(run.checkpoints.path(5), ["notes.txt"])
    run.checkpoints.remove_old(None)

    assert run.checkpoints.steps() == [5, 15, 20]
    assert is_untouched(run.checkpoints.path(5), ["notes.txt", "state.pt"])


def test_a_foreign_folder_named_like_a_checkpoint_is_not_one(tmp_path):
    run = RunDir.open(tmp_path / "run", FinetuneSettings(), resume=False, force=False, facts={})
    put(run.checkpoints.path(40), ["notes.txt"])

    assert run.checkpoints.pointer("last") is None


def test_force_is_not_suggested_for_a_folder_without_a_run(train, tmp_path):
    put(tmp_path / "proj")
    code, _, stderr = train(tmp_path / "proj")

    assert code == 2
    assert "it holds no run that --resume could continue or --force replace" in stderr
    shutil.rmtree(tmp_path / "proj")
