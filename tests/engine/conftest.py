"""A small objective with dropout and a stream of batches, to run the real loop in milliseconds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from refcli.config.schema import FinetuneSettings, FinetuneTrainSettings, OptimSettings
from refcli.contracts.batch import Batch, Targets
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.world import World
from refcli.engine.loop import Feed, train
from refcli.engine.reporting.reporters import SilentReporter

BATCH = 4


class BoxFromPixels(nn.Module):
    """Predicts the box of a batch from 2x2 images; dropout makes it draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.Dropout(0.25))
        self.head = nn.Linear(16, 4)

    def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        difference = self.head(self.tower(batch.images.flatten(1))) - batch.targets.boxes_cxcywh
        return {"l1": difference.abs().mean(), "l2": difference.square().mean()}

    def param_depth(self, name: str) -> int | None:
        return 0 if name.startswith("tower.") else None


def make_batch(number: int) -> Batch:
    """Batch `number` of the stream: boxes are a linear function of the pixels."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(BATCH, 3, 2, 2, generator=generator)
    boxes = images.flatten(1) @ torch.linspace(-1, 1, 48).reshape(12, 4)
    yes = torch.ones(BATCH, dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(BATCH, 2, 2, dtype=torch.bool), yes, yes)
    ids = tuple(f"{number}/{row}" for row in range(BATCH))
    return Batch(
        images, torch.zeros(BATCH, 3, dtype=torch.int64), torch.zeros(BATCH, 3, dtype=torch.bool), targets, ids
    )


@dataclass
class Notes(SilentReporter):
    """Keeps what the loop reports."""

    noted_texts: list = field(default_factory=list)
    measured_lines: list = field(default_factory=list)
    validated_lines: list = field(default_factory=list)
    saved_steps: list = field(default_factory=list)
    started_at: list = field(default_factory=list)

    def noted(self, text):
        self.noted_texts.append(text)

    def started(self, *, step, total):
        self.started_at.append(step)

    def measured(self, metrics):
        self.measured_lines.append(dict(metrics))

    def validated(self, metrics, *, is_best):
        self.validated_lines.append((dict(metrics), is_best))

    def saved(self, step):
        self.saved_steps.append(step)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def settings() -> FinetuneSettings:
    """Twelve steps of two batches each in fp32, averaged, measured at every step."""
    return FinetuneSettings(
        optim=OptimSettings(lr=1e-2, warmup_steps=3),
        train=FinetuneTrainSettings(
            steps=12, batch_size=BATCH, accumulate=2, precision="fp32", ema_decay=0.9, log_every=1, save_every=5, seed=3
        ),
    )


@pytest.fixture
def run_training(tmp_path, settings, notes) -> Callable[..., tuple[nn.Module, nn.Module, RunDir]]:
    """Run the loop in `tmp_path / name`; returns (the objective, the returned module, the run directory)."""

    def run(
        name: str = "run",
        *,
        changes=None,
        optim=None,
        resume=False,
        force=False,
        batch=make_batch,
        objective=None,
        **loop,
    ):
        torch.manual_seed(0)
        model = objective if objective is not None else BoxFromPixels()
        new = settings.model_copy(
            update={
                "train": settings.train.model_copy(update=changes or {}),
                "optim": settings.optim.model_copy(update=optim or {}),
            }
        )
        directory = RunDir.open(tmp_path / name, new, resume=resume, force=force, facts={})
        validate = loop.pop("validate", None)
        result = train(
            model,
            Feed(lambda start: (batch(number) for number in itertools.count(start)), validate),
            TrainingContext(new.optim, new.train, directory, World(0, 1, torch.device("cpu")), notes),
            **loop,
        )
        return model, result, directory

    return run


@pytest.fixture
def batch_of() -> Callable[[int], Batch]:
    return make_batch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are slower on two threads, and much slower where other programs want the second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SmallRuns:
    """Starts and awaits runs of `small_run.py`, each in one or more processes of its own."""

    def __init__(self) -> None:
        program = [sys.executable, str(Path(__file__).parent / "small_run.py")]
        self._server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, out: Path, **options) -> list[int]:
        """The ids of the new processes."""
        return self._ask({"start": {"out": str(out), **options}})

    def wait(self, processes: list[int]) -> list[int]:
        """Their exit codes; a negative one is a signal."""
        return self._ask({"wait": processes})

    def run(self, out: Path, **options) -> list[int]:
        """Start and wait."""
        return self.wait(self.start(out, **options))

    def stderr_of(self, out: Path, rank: int = 0) -> str:
        """The stderr of a process of the latest run in `out`."""
        return Path(f"{out}.{rank}.txt").read_text()

    def close(self) -> None:
        self._server.communicate()

    def _ask(self, order: dict) -> list[int]:
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@pytest.fixture(scope="session")
def small_runs() -> Iterator[SmallRuns]:
    runs = SmallRuns()
    yield runs
    runs.close()
