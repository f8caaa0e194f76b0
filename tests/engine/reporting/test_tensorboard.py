"""TensorBoard gets every metric under its step, and forwards everything to the next reporter."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from refcli.engine.reporting.tensorboard import WRITER_MODULE, TensorBoard
from refcli.errors import ConfigError, ExitCode

LINE = {"step": 40, "loss": 1.5, "samples_per_second": 12.0}
CHECK = {"step": 40, "validation/score": 0.25}


@pytest.fixture
def written(monkeypatch) -> list:
    """Stand in for the package; returns the calls of its writer."""
    calls: list = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

    module = ModuleType(WRITER_MODULE)
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, WRITER_MODULE, module)
    return calls


def test_every_metric_is_a_scalar_of_its_step(written, notes, tmp_path):
    board = TensorBoard(tmp_path / "tensorboard", notes)
    board.started(step=20, total=100)
    board.measured(LINE)
    board.validated(CHECK, is_best=True)

    assert written == [
        ("open", str(tmp_path / "tensorboard"), 21),
        ("train/loss", 1.5, 40),
        ("train/samples_per_second", 12.0, 40),
        "flush",
        ("validation/score", 0.25, 40),
        "flush",
    ]


def test_the_next_reporter_gets_everything(written, notes, tmp_path):
    board = TensorBoard(tmp_path, notes)
    board.started(step=0, total=100)
    board.measured(LINE)
    board.validated(CHECK, is_best=False)
    board.saved(40)

    assert notes.started_at == [0]
    assert notes.measured_lines == [LINE]
    assert notes.validated_lines == [(CHECK, False)]
    assert notes.saved_steps == [40]


def test_nothing_is_written_before_training_starts(written, notes, tmp_path):
    TensorBoard(tmp_path / "tensorboard", notes).noted("hello")

    assert written == []
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_setting_is_refused(monkeypatch, notes, tmp_path):
    monkeypatch.delitem(sys.modules, WRITER_MODULE, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    with pytest.raises(ConfigError, match="not installed") as caught:
        TensorBoard(tmp_path, notes)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.where == "train.tensorboard"
    assert "refcli[tensorboard]" in caught.value.hint


def test_tensorboard_reads_back_what_a_resumed_run_wrote(notes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, losses in ((0, (3.0, 2.0, 9.0)), (2, (1.5,))):  # killed after step 3, saved after step 2
        board = TensorBoard(tmp_path, notes)
        board.started(step=start, total=10)
        for number, loss in enumerate(losses, start=start + 1):
            board.measured({"step": number, "loss": loss})

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0), (3, 1.5)]
