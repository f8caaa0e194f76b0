"""A run with damaged small files is resumed if it does not need them; otherwise an error names the remedy."""

from __future__ import annotations

import json

import pytest

SHORT = [
    *("--set", "data.validation=[]", "--set", "data.workers=0", "--set", "train.batch_size=4"),
    *("--set", "optim.warmup_steps=1", "--set", "train.save_every=1", "--device", "cpu"),
]
DAMAGE = {
    "missing": None,
    "empty": b"",
    "cut off": b'{"refcli": "0.1.0", "sto',
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "without the store": b'{"refcli": "0.1.0"}',
    "a store that is a number": b'{"refcli": "0.1.0", "store": 1}',
}


@pytest.fixture
def run(refcli, tmp_path):
    """A finished run of one step."""
    assert refcli("prepare-data", "synthetic", "--out", tmp_path / "store", "--size", "10")[0] == 0
    out = tmp_path / "run"
    code, _, err = refcli(
        *("finetune", "-p", "synthetic_tiny", "-d", tmp_path / "store", "-o", out, *SHORT, "--set", "train.steps=1")
    )
    assert code == 0, err
    return out


def put(path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_the_data_option_replaces_a_damaged_record_of_the_store(refcli, run, tmp_path):
    for number, (what, content) in enumerate(DAMAGE.items(), start=2):
        put(run / "env.json", content)
        steps = ("--set", f"train.steps={number}")
        code, _, err = refcli("finetune", "-o", run, "--resume", *steps)
        assert code == 2, what
        assert "--data STORE" in err and str(run / "env.json") in err
        if what in ("missing", "deep"):
            code, _, err = refcli("finetune", "-o", run, "--resume", "--data", tmp_path / "store", *steps)
            assert code == 0, err
            assert json.loads((run / "env.json").read_text())["store"] == str(tmp_path / "store")


def test_unreadable_settings_are_named(refcli, run):
    for content in (b"", b"\xff\xfe", b"train: {steps: x}", b"[]", b"a: [", b"train:\n  precision: 1\n"):
        put(run / "run.yaml", content)
        code, _, err = refcli("finetune", "-o", run, "--resume")
        assert code == 2
        assert "run.yaml" in err
        assert "unexpected" not in err


def test_unreadable_metrics_are_left_out(refcli, run):
    lines = ["{}", "[", '{"step": 1e400}', '{"step": 1, "validation/score": 1' + "0" * 400 + "}", '{"step": "1"}', "é"]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    code, _, err = refcli("finetune", "-o", run, "--resume", "--set", "train.steps=2")
    assert code == 0, err
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [2]  # step 1 counts as a validation, and this run had none


@pytest.mark.parametrize("content", [b"{", b'{"step": "../x"}', b'{"step": 1, "score": "a"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_pointer_to_the_best_checkpoint_is_named(refcli, run, content):
    (run / "checkpoints" / "best.json").write_bytes(content)
    code, _, err = refcli("finetune", "-o", run, "--resume", "--set", "train.steps=2")
    assert "unexpected" not in err
    assert code == 0 or "best.json" in err
