"""Does Mask Referring Modelling help? Pre-train four ways on one small set, fine-tune alike, compare on other scenes.

    python benchmarks/mrefm_ablation.py --out ABLATION [--seeds 1 2] [--scenes 3000] [--steps 1500 1500]

Every condition sees the same scenes for the same number of steps with the same model, optimiser and seeds:

    none            fine-tuning alone
    longer          fine-tuning alone, for as many steps as pre-training and fine-tuning together
    vanilla         plain masked image and language modelling: it does not use the referent (the paper's MVLM)
    mrefm_no_scores referring-aware masking and the referring products, no target-relation scores
    mrefm           all terms

All runs are ordinary `refcli` runs below --out. Finished ones are not repeated and interrupted ones are resumed, so the
script may be stopped at any time. The last lines are the table: mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from small_runs import MODEL, evaluate, log, markdown, percent, prepare, read_or_make, train

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
METRICS = ("acc50", "box_miou", "mask_miou", "n_acc", "t_acc")


def main() -> None:
    """Run the missing parts, then print the table."""
    options = parse()
    prepare(options.out / "store", scenes=options.scenes, test_scenes=options.test_scenes)
    names = options.conditions or list(CONDITIONS)
    for seed in options.seeds:
        for name in names:
            scores = run_condition(options, name, seed)
            log(f"{name} seed {seed}: " + " ".join(f"{metric} {scores[metric]:.3f}" for metric in METRICS))
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


def run_condition(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Pre-train if the condition includes it, fine-tune, evaluate; returns the metrics."""
    folder, store = options.out / f"seed{seed}" / name, options.out / "store"

    def run() -> str:
        common = [f"train.seed={seed}", *MODEL]
        pretrain_steps, finetune_steps = options.steps
        settings = CONDITIONS[name]
        if settings is not None:
            train("pretrain", "mrefm_synthetic_small", folder / "pretrain", store, [
                *common, *settings, f"train.steps={pretrain_steps}"
            ])  # fmt: skip
        steps = finetune_steps + (pretrain_steps if name == "longer" else 0)
        init = [] if settings is None else ["--init", folder / "pretrain" / "weights"]
        train("finetune", "synthetic_small", folder / "finetune", store, [
            *common, f"train.steps={steps}", "data.validation=[]", "train.validate_every=null"
        ], *init)  # fmt: skip
        return evaluate(folder / "finetune" / "weights", store)

    metrics = read_or_make(folder / "summary.json", run)["metrics"]
    return {metric: metrics[f"synthetic/test/{metric}"] for metric in METRICS}


def table(options: argparse.Namespace, names: Sequence[str]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    rows = []
    for name in names:
        runs = [run_condition(options, name, seed) for seed in options.seeds]
        rows.append([name, *(percent([run[metric] for run in runs]) for metric in METRICS)])
    return markdown(["pre-training", *METRICS], rows)


if __name__ == "__main__":
    main()
