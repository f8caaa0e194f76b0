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
import time
import traceback
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
from refcli.engine.reporting.reporters import Silence
from refcli.errors import DataError, RefcliError
from refcli.grounder import Grounder

SIDE, WORDS, SCENES = 32, 4, 101
LONGEST_SECONDS = 300
"""A process that hangs is ended by SIGALRM."""
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
        """The pixels of this sample are not numbers."""

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


class Talk(Silence):
    """Notes go to stderr."""

    def noted(self, text):
        sys.stderr.write(text + "\n")


def slow_writes(seconds: float) -> None:
    """Make every flush to disk take so long, and every state file twice as long, half-written in between."""
    fsync, save = os.fsync, torch.save

    def slow_fsync(descriptor):
        time.sleep(seconds)
        fsync(descriptor)

    def slow_save(content, file):
        whole = io.BytesIO()
        save(content, whole)
        half = whole.tell() // 2
        with Path(file).open("wb") as out:
            for part in (whole.getvalue()[:half], whole.getvalue()[half:]):
                out.write(part)
                out.flush()
                time.sleep(seconds)

    os.fsync, torch.save = slow_fsync, slow_save


def train_here(out: str, *, settings=(), resume=False, force=False, poisoned=None, fails_to_validate=False) -> None:
    """Train in this process, one of the world that the environment describes."""
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

        train(
            grounder,
            Feed(batches, score),
            TrainingContext(chosen.optim, chosen.train, RunDir(Path(out)), world, Talk()),
        )
    finally:
        world.close()


def fork(run, environment: dict[str, str], talk: str) -> int:
    """Do `run` in a new process that talks to a file; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LONGEST_SECONDS)
        descriptor = os.open(talk, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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


def start(*, out: str, size: int = 1, write_seconds: float = 0.0, **options) -> list[int]:
    """Start a run in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def run():
        if write_seconds:
            slow_writes(write_seconds)
        train_here(out, **options)

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
