"""Trials of `kill -9`: runs of the preset synthetic_tiny, killed at a random moment, resumed and compared to the bit.

python benchmarks/kill.py [TRIALS] [SEED]

Every second trial is killed while it writes a checkpoint; writing is slowed down so that this can be hit.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import equal, load

STEPS, SAVE_EVERY = 100, 10
WRITE_SECONDS = 0.02
SLOW_REFCLI = f"""
import os, time
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep({WRITE_SECONDS}), fsync(descriptor))[1]
from refcli.__main__ import main
main()
"""
SETTINGS = [f"train.steps={STEPS}", f"train.save_every={SAVE_EVERY}", "train.validate_every=50"]


def start(store: Path, out: Path, *options: str) -> subprocess.Popen:
    """`refcli finetune` with slow writes."""
    command = [sys.executable, "-c", SLOW_REFCLI, "finetune", "--preset", "synthetic_tiny", "--device", "cpu"]
    command += ["--data", str(store), "--out", str(out), *options]
    for setting in SETTINGS:
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=out.with_suffix(".log").open("w"))


def finish(process: subprocess.Popen, out: Path) -> None:
    """Wait for a run that must succeed."""
    if process.wait():
        sys.exit(out.with_suffix(".log").read_text())


def half_written(out: Path) -> list[str]:
    """Checkpoints that are being written."""
    return [path.name for path in (out / "checkpoints").glob(".tmp-step-*")]


def wait_for_save(process: subprocess.Popen, out: Path, number: int) -> None:
    """Return once that many checkpoints have begun to be written."""
    seen: set[str] = set()
    while len(seen) < number and process.poll() is None:
        seen.update(half_written(out))
        time.sleep(0.0005)


def final_state(out: Path) -> dict:
    """The final state of a run: weights, average, optimiser and random generators."""
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    state = load(last / "state.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    return {
        **{f"weights {name}": value for name, value in load_file(out / "weights" / "model.safetensors").items()},
        **{f"model {name}": value for name, value in load_file(last / "model.safetensors").items()},
        **{f"average {name}": value for name, value in load_file(last / "ema.safetensors").items()},
        **{f"optimiser {key} {name}": value for key, values in moments.items() for name, value in values.items()},
        "random generator": state["generators"][0]["torch"],
    }


def trial(number: int, store: Path, out: Path, *, seconds: float, moments: random.Random) -> str:
    """Start, kill, resume; returns a description of what was on disk after the kill."""
    process, before = start(store, out), time.perf_counter()
    if number % 2:
        wait_for_save(process, out, moments.randint(1, STEPS // SAVE_EVERY - 1))
        time.sleep(moments.uniform(0, 6 * WRITE_SECONDS))
    else:
        time.sleep(moments.uniform(0, 0.95 * seconds))
    process.kill()
    code = process.wait()
    after = time.perf_counter() - before
    saved = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    found = f"killed after {after:5.1f} s (exit {code}), last {saved[-1] if saved else 'none':13}"
    found += ", one half-written" if half_written(out) else ""
    finish(start(store, out, "--resume" if (out / "run.yaml").is_file() else "--force"), out)
    return found


def main(trials: int = 10, seed: int = 0) -> None:
    """Print a line per trial, and how many ended like the uninterrupted run."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        store, whole = Path(folder) / "store", Path(folder) / "whole"
        prepare = ["prepare-data", "synthetic", "--out", str(store), "--size", "200"]
        subprocess.run([sys.executable, "-m", "refcli", *prepare], check=True, capture_output=True)
        before = time.perf_counter()
        finish(start(store, whole), whole)
        seconds = time.perf_counter() - before
        expected = final_state(whole)
        print(f"uninterrupted: {STEPS} steps in {seconds:.1f} s; {len(expected)} tensors are compared")
        num_equal = 0
        for number in range(trials):
            out = Path(folder) / f"trial-{number}"
            found = trial(number, store, out, seconds=seconds, moments=moments)
            ended = final_state(out)
            different = [name for name, value in expected.items() if not equal(value, ended[name])]
            num_equal += not different
            print(f"{number}: {found}; resumed: {'equal' if not different else f'{len(different)} differ'}", flush=True)
    print(f"{num_equal} of {trials} ended with the same bits")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
