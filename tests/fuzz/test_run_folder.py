"""The small files of a run folder, which a resumed run reads: env.json, metrics.jsonl, best.json."""

from __future__ import annotations

import json

import pytest
from harness import NUM_INPUTS, fuzz, mutated_json_bytes, mutated_lines

from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.validation import read_validations
from refcli.recipes.validation import check_floors

FACTS = {"refcli": "0.1.0", "store": "/data/store", "processes": 1, "launch": None, "data": {"a:train": {"samples": 4}}}
LINES = [
    {"step": 1, "loss": 2.5, "lr": 1e-4, "seconds": 0.5},
    {"step": 2, "validation/score": 0.5, "validation/box_iou": 0.25, "validation/seconds": 0.1},
]


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_env_json_is_read_or_counts_as_empty(tmp_path, num_inputs):
    def read(content: bytes) -> None:
        (tmp_path / "env.json").write_bytes(content)
        assert isinstance(RunDir(tmp_path).facts(), dict)

    fuzz(mutated_json_bytes([FACTS]), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_metrics_are_read_as_far_as_they_can_be(tmp_path, num_inputs):
    def read(content: bytes) -> None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
        for metrics in read_validations(tmp_path).values():
            json.dumps(metrics)
        check_floors(tmp_path, keep="last", floors={"score": 0.0} if read_validations(tmp_path) else {})
        RunDir(tmp_path).drop_metrics_after(1, validated=1)

    fuzz(mutated_lines(LINES), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_best_json_is_read_or_refused(tmp_path, num_inputs):
    (tmp_path / "step-00000002").mkdir()

    def read(content: bytes) -> None:
        (tmp_path / "best.json").write_bytes(content)
        Checkpoints(tmp_path).pointer("best")

    fuzz(mutated_json_bytes([{"step": 2, "score": 0.5}]), read, num_inputs)
