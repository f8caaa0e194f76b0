"""Pre-training in two processes equals pre-training in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

CHANGES = (
    'data.train=["squares:train"]', "data.validation=[]", "data.workers=0", "train.steps=4", "train.log_every=1",
    "train.save_every=4", "optim.name=sgd", "optim.lr=0.01", "mrefm.visual_codes.num_codes=8",
)  # fmt: skip
TERMS = ("mim", "visual_target_relation", "mlm", "semantic_target_relation", "similarity_focal", "similarity_dice")


@pytest.mark.parametrize(
    "how",
    [
        ("mrefm.alternate=true",),
        pytest.param(("mrefm.alternate=false",), marks=pytest.mark.slow),
        pytest.param(("train.parallel=fsdp", "train.ema_decay=null"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_with_half_of_the_batch_are_one_process_with_all_of_it(tmp_path, store, how):
    """In fp32 the sums are only in another order; what is hidden depends on the sample, not on its process."""
    for name, batch_size, more in (("one", 8, []), ("two", 4, ["--nproc", "2"])):
        changes = [*CHANGES, f"train.batch_size={batch_size}", "mrefm.semantic_targets.refresh_every=2", *how]
        overrides = [part for change in changes for part in ("--set", change)]
        command = [
            "pretrain",
            "--preset",
            "synthetic_tiny",
            "--data",
            store,
            "--out",
            tmp_path / name,
            *overrides,
            *more,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "refcli", *map(str, command)],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for alone, both in zip(one, two, strict=True):
        losses = [[line[term] for term in TERMS if term in line] for line in (both, alone)]
        assert len(losses[0]) >= 4
        torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=5e-6)
    for file in ("model.safetensors", "pretraining_heads.safetensors"):
        alone, both = (load_file(tmp_path / name / "weights" / file) for name in ("one", "two"))
        for key, tensor in alone.items():
            torch.testing.assert_close(both[key], tensor, rtol=0, atol=2e-6, msg=key)
