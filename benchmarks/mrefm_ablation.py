"""Does Mask Referring Modelling help? Pre-train four ways on one small set, fine-tune alike, compare on other scenes.

    python benchmarks/mrefm_ablation.py --out ABLATION [--seeds 1 2] [--scenes 3000] [--steps 1500 1500]

Every condition sees the same scenes for the same number of steps with the same model, optimiser and seeds:

    none            fine-tuning alone
    longer          fine-tuning alone, for as many steps as pre-training and fine-tuning together
    vanilla         plain masked image and language modelling: nothing in it knows the referent (the paper's MVLM)
    mrefm_no_scores referring-aware masking and the referring products, no target-relation scores
    mrefm           all terms

All runs are ordinary `refcli` runs below --out; what is finished there is not done again, and what was interrupted goes
on, so the script may be stopped at any time. The last lines are the table: mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONDITIONS: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "longer": None,
    "vanilla": (
        "mrefm.image_masking.method=vanilla",
        "mrefm.text_masking.prefer=none",
        "mrefm.mim_input=patch",
        "mrefm.loss_weights={mim: 1, mlm: 1, visual_target_relation: 0, semantic_target_relation: 0, grounding: 0}",
    ),
    "mrefm_no_scores": (
        "mrefm.image_masking.method=block",
        "mrefm.loss_weights={visual_target_relation: 0, semantic_target_relation: 0}",
    ),
    "mrefm": ("mrefm.image_masking.method=block", "mrefm.semantic_targets.refresh_every=200"),
}
MODEL = (
    "model.tower.image_size=96",
    "model.tower.patch_size=12",
    "model.tower.dim=128",
    "model.tower.layers=5",
    "model.tower.heads=4",
    "model.tower.ffn_dim=512",
)
METRICS = ("acc50", "box_miou", "mask_miou", "n_acc", "t_acc")
SCENES_SEED, TEST_SEED = 11, 12


def main() -> None:
    """Run what is missing, then print the table."""
    options = parse()
    prepare(options)
    names = options.conditions or list(CONDITIONS)
    for seed in options.seeds:
        for name in names:
            scores = run_condition(options, name, seed)
            say(f"{name} seed {seed}: " + " ".join(f"{metric} {scores[metric]:.3f}" for metric in METRICS))
    print(table(options, names))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scenes", type=int, default=3000, help="labelled training scenes, six expressions each")
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs=2, default=[1500, 1500], metavar=("PRETRAIN", "FINETUNE"))
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS))
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Draw the scenes of training and test: other seeds, other splits."""
    for split, size, seed in (("few", options.scenes, SCENES_SEED), ("test", options.test_scenes, TEST_SEED)):
        if not (options.out / "store" / "synthetic" / f"{split}.parquet").is_file():
            refcli("prepare-data", "synthetic", "--out", options.out / "store", "--split", split, "--size", size,
                   "--seed", seed)  # fmt: skip


def run_condition(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Pre-train if the condition says so, fine-tune, evaluate; returns the figures."""
    folder = options.out / f"seed{seed}" / name
    summary = folder / "summary.json"
    if not summary.is_file():
        common = [f"train.seed={seed}", *MODEL]
        pretrain_steps, finetune_steps = options.steps
        settings = CONDITIONS[name]
        if settings is not None:
            train("pretrain", "mrefm_synthetic_small", folder / "pretrain", options, [
                *common, *settings, f"train.steps={pretrain_steps}"
            ])  # fmt: skip
        steps = finetune_steps + (pretrain_steps if name == "longer" else 0)
        init = [] if settings is None else ["--init", folder / "pretrain" / "weights"]
        train("finetune", "synthetic_small", folder / "finetune", options, [
            *common, f"train.steps={steps}", "data.validation=[]", "train.validate_every=null"
        ], *init)  # fmt: skip
        printed = refcli("evaluate", "--weights", folder / "finetune" / "weights", "--data", options.out / "store",
                         "--split", "synthetic:test", "--json")  # fmt: skip
        temporary = summary.with_suffix(".tmp")
        temporary.write_text(printed)
        temporary.replace(summary)
    metrics = json.loads(summary.read_text())["metrics"]
    return {metric: metrics[f"synthetic/test/{metric}"] for metric in METRICS}


def train(
    command: str, preset: str, run: Path, options: argparse.Namespace, settings: Sequence[str], *more: object
) -> None:
    """One training run, unless its weights are there; an interrupted one goes on."""
    if (run / "weights" / "model.safetensors").is_file():
        return
    overrides = [part for setting in ('data.train=["synthetic:few"]', *settings) for part in ("--set", setting)]
    how = ["--resume"] if (run / "run.yaml").is_file() else []
    refcli(command, "--preset", preset, "--data", options.out / "store", "--out", run, *overrides, *more, *how)


def refcli(*arguments: object) -> str:
    """Run one command; returns what it printed."""
    command = [sys.executable, "-m", "refcli", *map(str, arguments)]
    say("$ refcli " + " ".join(map(str, arguments)))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout


def table(options: argparse.Namespace, names: Sequence[str]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    lines = ["| pre-training | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in names:
        runs = [run_condition(options, name, seed) for seed in options.seeds]
        cells = []
        for metric in METRICS:
            figures = [100 * run[metric] for run in runs]
            spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
            cells.append(f"{statistics.mean(figures):.1f} ± {spread:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def say(text: str) -> None:
    """Talk on stderr; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
