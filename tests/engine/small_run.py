"""A program that starts small training runs in processes that need not import anything, for tests that kill them.

It reads orders from stdin, one JSON object per line, and answers each with one line:
{"start": {"out": FOLDER, "size": PROCESSES, ...}} with the process ids, {"wait": [IDS]} with the exit codes.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch

from refcli.config.load import apply_overrides, validate
from refcli.config.schema import FinetuneSettings
from refcli.contracts.batch import Batch, Targets
from refcli.data.training.sampling import EndlessSampler
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.state import seed_generators
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.world import join_world
from refcli.engine.loading import iterate_batches
from refcli.engine.loop import Feed, train
from refcli.engine.reporting.reporters import SilentReporter
from refcli.errors import DataError, RefcliError
from refcli.grounder import Grounder

SIDE, WORDS, SCENES = 32, 4, 101
LONGEST_SECONDS = 300
"""SIGALRM ends a process that hangs."""
SETTINGS = {
    "model": {
        "tower": {
            "image_size": SIDE,
            "patch_size": 16,
            "dim": 32,
            "layers": 2,
            "heads": 2,
            "ffn_dim": 64,
            "vocabulary_size": 50,
            "max_text_positions": 8,
            "drop_path": 0.3,
            "init": "scaled",
        },
        "text": {"max_tokens": 6},
        "head": {"name": "oneref", "settings": {"rec": True, "existence": True, "similarity_scale": 10.0}},
    },
    "data": {"workers": 1},
    "optim": {"lr": 3e-3, "warmup_steps": 2},
    "train": {
        "steps": 30,
        "batch_size": 4,
        "precision": "fp32",
        "ema_decay": 0.9,
        "log_every": 1,
        "save_every": 5,
        "validate_every": 10,
    },
}


class Scenes:
    """Noise with a box; every third sample has no referent, so that processes have unequal numbers of boxes."""

    def __init__(self, poisoned: int | None) -> None:
        self.poisoned = poisoned
        """Index of the sample whose pixels are NaN."""

    def __getitem__(self, key):
        index, draw = key
        generator = np.random.default_rng([index, draw])
        image = torch.from_numpy(generator.standard_normal((3, SIDE, SIDE), dtype=np.float32))
        if index == self.poisoned:
            image.fill_(torch.nan)
        box = torch.tensor([0.5, 0.5, 0.1 + 0.05 * (index % 9), 0.3])
        words = torch.from_numpy(generator.integers(3, 50, WORDS))
        return image, words, box, index % 3 != 0, f"scene {index}"


def collate(samples) -> Batch:
    images, words, boxes, exists, ids = zip(*samples, strict=True)
    exists = torch.tensor(exists)
    masks = torch.zeros(len(ids), SIDE, SIDE, dtype=torch.bool)
    targets = Targets(torch.stack(boxes) * exists[:, None], masks, torch.zeros_like(exists), exists)
    token_ids = torch.stack(words)
    return Batch(torch.stack(images), token_ids, torch.zeros_like(token_ids, dtype=torch.bool), targets, ids)


class StepReporter(SilentReporter):
    """Writes notes to stderr; after a given step this process sends itself a signal."""

    def __init__(self, signal_after: tuple[int, int] | None, moment) -> None:
        self.signal_after = signal_after
        self.moment = moment

    def noted(self, text):
        sys.stderr.write(text + "\n")

    def stepped(self, step):
        self.moment()
        if self.signal_after is not None and step == self.signal_after[0]:
            os.kill(os.getpid(), self.signal_after[1])


def kill_at(number: int | None = None, *, in_state_file: int | None = None):
    """Let this process kill itself: at a moment, or in the middle of a state file.

    There is a moment after every step, before and after every flush to disk, and in the middle of every state file.

    Args:
        number: of the moment, from 1.
        in_state_file: number of the state file, from 1.

    Returns:
        A function to call after every step.
    """
    num_moments = num_files = 0
    fsync, save = os.fsync, torch.save

    def moment():
        nonlocal num_moments
        num_moments += 1
        if num_moments == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(descriptor):
        moment()
        fsync(descriptor)
        moment()

    def counted_save(content, file):
        nonlocal num_files
        if not isinstance(file, Path):  # a message to another process
            save(content, file)
            return
        num_files += 1
        buffer = io.BytesIO()
        save(content, buffer)
        written = buffer.getvalue()
        half = len(written) // 2
        with file.open("wb") as out:
            out.write(written[:half])
            out.flush()
            moment()
            if num_files == in_state_file:
                os.kill(os.getpid(), signal.SIGKILL)
            out.write(written[half:])

    os.fsync, torch.save = counted_fsync, counted_save
    return moment


def train_here(
    out: str, *, settings=(), resume=False, force=False, poisoned=None, fails_to_validate=False, kill=None, stop=None
) -> None:
    """Train in this process, one of the world that the environment describes.

    Args:
        kill: arguments of `kill_at`.
        stop: (step, signal): the last process sends itself this signal after this step.
    """
    moment = kill_at(**(kill or {}))
    chosen = validate(FinetuneSettings, apply_overrides(SETTINGS, settings), where="this test")
    world = join_world("cpu")
    try:
        if world.is_main:
            RunDir.open(Path(out), chosen, resume=resume, force=force, facts={})
        world.wait()
        seed_generators(chosen.train.seed)
        grounder = Grounder.from_settings(chosen.model)

        def batches(start):
            place = {"rank": world.rank, "world": world.size, "start_step": start}
            order = EndlessSampler(SCENES, batch_size=chosen.train.batch_size, seed=chosen.train.seed, **place)
            return iterate_batches(Scenes(poisoned), order, collate, workers=chosen.data.workers)

        def score(model):
            if fails_to_validate:
                raise DataError("there is nothing to score")
            losses = model(collate([Scenes(None)[number, 0] for number in range(8)]), 0)
            return {"score": -float(sum(losses.values()))}

        reporter = StepReporter(stop if world.rank == world.size - 1 else None, moment)
        context = TrainingContext(chosen.optim, chosen.train, RunDir(Path(out)), world, reporter)
        train(grounder, Feed(batches, score), context)
    finally:
        world.close()


def fork(run, environment: dict[str, str], log: str) -> int:
    """Run something in a new process that writes to a file; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LONGEST_SECONDS)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        torch.set_num_threads(1)
        run()
        code = 0
    except RefcliError as error:
        sys.stderr.write(f"{error}\n")
        code = int(error.exit_code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def start(*, out: str, size: int = 1, **options) -> list[int]:
    """Start a run in `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    run = partial(train_here, out, **options)
    return [
        fork(run, {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}, f"{out}.{rank}.txt") for rank in range(size)
    ]


def wait(children: list[int]) -> list[int]:
    """Exit codes; a negative one is a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        answer = start(**order["start"]) if "start" in order else wait(order["wait"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
