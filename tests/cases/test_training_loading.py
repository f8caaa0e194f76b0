"""Loading processes that die, hang or run out of memory end training with one sentence, and never block it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from refcli.contracts.batch import Batch, Targets
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.data.training.dataset import GroundingDataset
from refcli.engine import loading
from refcli.engine.loading import iterate_batches
from refcli.engine.stopping import LoadingStalledError, StopSignals
from refcli.errors import TrainingError

SMALL = ["model.tower.dim=32", "model.tower.layers=1", "model.tower.ffn_dim=32", "model.tower.heads=2"]
SETTINGS = ["train.batch_size=2", "train.steps=3", "train.precision=fp32", "optim.warmup_steps=1"]


class Samples:
    """Samples by number; in a loading process, number 5 runs a given action."""

    def __init__(self, odd=lambda: None) -> None:
        self.odd = odd

    def __getitem__(self, number: int) -> int:
        if number == 5 and torch.utils.data.get_worker_info():
            self.odd()
        return number


def collate(numbers: Sequence[int]) -> Batch:
    yes = torch.ones(len(numbers), dtype=torch.bool)
    targets = Targets(torch.zeros(len(numbers), 4), torch.zeros(len(numbers), 2, 2, dtype=torch.bool), yes, yes)
    tokens = torch.tensor(numbers)[:, None]
    return Batch(torch.zeros(len(numbers), 3, 2, 2), tokens, tokens < 0, targets, tuple(map(str, numbers)))


def load(samples: Samples, *, workers: int = 1, signals: StopSignals | None = None) -> list[str]:
    order = [[2 * number, 2 * number + 1] for number in range(6)]
    ids: list[str] = []
    with closing(iterate_batches(samples, order, collate, workers=workers, signals=signals)) as batches:
        for batch in batches:
            ids += batch.ids
    return ids


def end_by(number: int):
    return lambda: os.kill(os.getpid(), number)


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has real-time signals, which have no names")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_in_order_from_any_loading_process(workers):
    assert load(Samples(), workers=workers) == [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "a loading process was ended by SIGKILL (was there enough memory?)"),
        (signal.SIGSEGV, "a loading process was ended by SIGSEGV"),
        pytest.param(40, "a loading process was ended by signal 40", marks=LINUX),
        (signal.SIGBUS, "no room in /dev/shm"),
    ],
)
def test_a_loading_process_killed_by_a_signal_is_named(number, message):
    with pytest.raises(TrainingError) as caught:
        load(Samples(end_by(number)))

    assert message in caught.value.message
    assert "data.workers=0" in caught.value.hint
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_a_loading_process_that_dies_while_sending_a_batch_is_reported(monkeypatch, error):
    def die(*_):
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", die)
    with pytest.raises(TrainingError, match="a loading process ended unexpectedly"):
        load(Samples())


@pytest.mark.parametrize("code", [0, 3])
def test_a_loading_process_that_exits_by_itself_is_reported(code):
    with pytest.raises(TrainingError, match="a loading process ended unexpectedly"):
        load(Samples(lambda: os._exit(code)))


@pytest.mark.parametrize(
    "words",
    [
        "unable to write to file </torch_1_2_0>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_1>: Success (0)",
        "unable to resize file <filename not specified> to the right size: Invalid argument (22)",
    ],
)
def test_full_shared_memory_is_an_error_and_not_an_endless_wait(monkeypatch, words):
    def full(tensor):
        raise RuntimeError(words)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the loading processes inherit it
    with pytest.raises(TrainingError, match="no room in /dev/shm") as caught:
        load(Samples())
    assert "--shm-size" in caught.value.hint and "data.workers=0" in caught.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.ENOSYS])
def test_a_system_that_refuses_locks_is_an_error_too(monkeypatch, number):
    def refuse():
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.Lock", refuse)
    with pytest.raises(TrainingError, match="no room in /dev/shm"):
        load(Samples())


def test_too_many_open_files_are_named():
    with pytest.raises(TrainingError, match="too many files are open") as caught, loading.explain_loading_errors():
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")
    assert "ulimit" in caught.value.hint


def test_other_errors_are_unchanged():
    with pytest.raises(RuntimeError, match="out of memory"), loading.explain_loading_errors():
        raise RuntimeError("CUDA out of memory")


def test_a_signal_ends_the_wait_for_a_loading_process_that_hangs(monkeypatch):
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(loading, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch's wait for a process to end
    with StopSignals() as signals, pytest.raises(LoadingStalledError) as caught:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        load(Samples(lambda: time.sleep(1000)), signals=signals)

    assert caught.value.exit_code == 75
    assert not multiprocessing.active_children(), "the hanging process was killed"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    write_synthetic(path, size=2, seed=3, splits=["train"])
    return path


@pytest.fixture
def train(refcli, store, tmp_path):
    def call(*options: str, command: str = "finetune"):
        sets = [*SETTINGS, *SMALL, "data.validation=[]", "train.validate_every=null"]
        changes = [part for one in sets for part in ("--set", one)]
        out = ["--data", store, "--device", "cpu", "--out", tmp_path / "run"]
        return refcli(command, "--preset", "synthetic_tiny", *out, *changes, *options)

    return call


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
@pytest.mark.parametrize("dry", [False, True])
def test_too_little_shared_memory_is_refused_before_the_first_step(monkeypatch, tmp_path, train, command, dry):
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 64 << 20)
    dims = ["--set", "train.batch_size=32", "--set", "model.tower.image_size=[384,384]", "--set", "data.workers=2"]
    code, _, stderr = train(*dims, *(["--dry-run"] if dry else []), command=command)

    assert code == 1
    assert "no room in /dev/shm" in stderr and "--shm-size" in stderr and "data.workers=0" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_loading_processes_no_shared_memory_is_needed(monkeypatch, train):
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 0)
    code, _, stderr = train("--set", "data.workers=0")

    assert code == 0, stderr


def test_a_killed_loading_process_ends_the_command_with_its_name(monkeypatch, train):
    real = GroundingDataset.__getitem__

    def die(dataset, key):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(dataset, key)

    monkeypatch.setattr(GroundingDataset, "__getitem__", die)
    code, output, stderr = train("--set", "data.workers=1")

    assert (code, output) == (1, "")
    assert "a loading process was ended by SIGKILL (was there enough memory?)" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr and "bug" not in stderr


def test_a_run_whose_images_hang_saves_its_progress_when_stopped(monkeypatch, tmp_path, train):
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(loading, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch's wait for a process to end
    real = GroundingDataset.__getitem__
    (tmp_path / "run").mkdir()

    def hang(dataset, key):
        if torch.utils.data.get_worker_info() and (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(1000)
        return real(dataset, key)

    def stop():
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(GroundingDataset, "__getitem__", hang)
    stopper = threading.Thread(target=stop)
    stopper.start()
    options = ["train.steps=1000", "train.log_every=1", "train.save_every=1000", "data.workers=1"]
    code, _, stderr = train(*(part for one in options for part in ("--set", one)))
    stopper.join()

    assert code == 75, stderr
    assert "the checkpoint is saved" in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
