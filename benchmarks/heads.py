"""Every head on the same pre-trained tower, trained equally on one small set and compared on other scenes.

    python benchmarks/heads.py --out HEADS [--init WEIGHTS] [--seeds 1 2] [--scenes 3000] [--steps 1500]
    python benchmarks/heads.py --out HEADS --init refcli/weights/builtin --image-size 112 --lr 1e-3 --warmup-steps 50 \
        --steps 300                                                                       # the one in docs/results.md

All heads train on the same scenes in the same order, for the same number of steps with the same optimiser, and start
from the same tower: that of --init (with `model.text.tokenizer: builtin`), or of a run of Mask Referring Modelling
below --out. A head in --init is left out: every head starts fresh, with an existence output and a threshold of 0.5. The
heads are reduced in size until they cost about as much as the small tower.

All runs are ordinary `refcli` runs below --out. Finished runs are kept and interrupted ones resumed, so the script may
be stopped at any time. It ends with three Markdown tables (costs and metrics over all samples, by kind of expression,
and by number of targets: mean and spread over the seeds) and two sheets of images, `multi_target.png` and
`no_target.png`, with the truth and every head of the first seed side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from heads_measured import cost, draw_cases, n_acc_at
from safetensors.torch import load_file, save_file
from small_runs import MODEL, TEST, evaluate, log, markdown, percent, prepare, read_or_make, train

from refcli.config.explain import explain
from refcli.config.load import load_finetune
from refcli.config.schema import HeadChoice

PYRAMID = [32, 48, 64, 96]
HEADS: dict[str, dict[str, Any]] = {
    "oneref": {
        "rec": True,
        "res": True,
        "existence": True,
        "similarity_scale": 10.0,
        "mask_scale": 10.0,
        "mask_dim": 48,
        "similarity_truth": "mask",
        "loss_weights": {"box_l1": 2.0, "existence_bce": 1.0},
    },
    "shared_ris": {
        "dim": 64,
        "heads": 4,
        "mask_scale": 0.125,
        "existence": True,
        "loss_weights": {"existence_bce": 1.0},
    },
    "cgformer": {
        "dim": 64,
        "pyramid_channels": PYRAMID,
        "lite": True,
        "dropout": 0.0,
        "existence": True,
        "loss_weights": {"existence_bce": 1.0},
    },
    "rela": {
        "dim": 64,
        "heads": 4,
        "regions": 8,
        "decoder_layers": 3,
        "decoder_ffn_dim": 256,
        "pixel_layers": 1,
        "pixel_ffn_dim": 128,
        "pyramid_channels": PYRAMID,
    },
    "instances": {
        "dim": 64,
        "mask_dim": 48,
        "heads": 4,
        "ffn_dim": 256,
        "mask_upsamples": 2,
        "loss_weights": {"existence_bce": 1.0},
    },
}
"""Settings for a grid of 8 x 8 patches and a tower of width 128 to 192; masks are 64 x 64 (oneref) or 32 x 32."""
METRICS = {
    "acc50": "Acc@0.5",
    "mask_miou": "mIoU",
    "mask_oiou": "oIoU",
    "giou": "gIoU",
    "ciou": "cIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "grec_pr_iou": "GREC Pr",
}
T_ACC, AT_T_ACC = 0.97, "n_acc_at_t_acc"
"""N-acc is also compared at the threshold of one T-acc, since 0.5 is a different trade-off for every head."""


def main() -> None:
    """Run the missing parts, then print the tables and draw the cases."""
    options = parse()
    store, names = options.out / "store", options.heads
    prepare(store, scenes=options.scenes, test_scenes=options.test_scenes)
    tower = options.out / "tower"
    if not (tower / "model.safetensors").is_file():
        write_tower(options.init or pretrain(options), tower)
    runs: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for seed in options.seeds:
        for name in names:
            document = run_head(options, name, seed)
            runs[name].append(document["splits"][TEST])
            overall = runs[name][-1]["overall"]
            log(f"{name} seed {seed}: " + " ".join(f"{key} {overall.get(key, 0):.3f}" for key in METRICS))
    weights = {name: options.out / f"seed{options.seeds[0]}" / name / "run" / "weights" for name in names}
    costs = {
        name: read_or_make(path.parents[1] / "cost.json", lambda p=path: json.dumps(cost(p)))
        for name, path in weights.items()
    }
    print(overall_table(runs, costs))
    for title, group in (("kind", lambda run: run["kinds"]), ("targets", lambda run: run["breakdown"]["targets"])):
        print("\n" + grouped_table(title, {name: [group(run) for run in of_head] for name, of_head in runs.items()}))
    draw_cases(weights, store, TEST, options.out)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights directory whose tower all heads start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scenes", type=int, default=3000, help="labelled training scenes, six expressions each")
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--image-size", type=int, help="default: that of the tower")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pretrain-steps", type=int, default=1500, help="without --init")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    return parser.parse_args()


def pretrain(options: argparse.Namespace) -> Path:
    """Weights of a short run of Mask Referring Modelling on the same scenes."""
    settings = ["mrefm.image_masking.method=block", "mrefm.semantic_targets.refresh_every=200"]
    run = options.out / "pretrain"
    length = f"train.steps={options.pretrain_steps}"
    train("pretrain", "mrefm_synthetic_small", run, options.out / "store", [*MODEL, *settings, length])
    return run / "weights"


def write_tower(weights: Path, out: Path) -> None:
    """Weights without their head."""
    config = yaml.safe_load((weights / "config.yaml").read_text())
    state = {key: value for key, value in load_file(weights / "model.safetensors").items() if key.startswith("tower.")}
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump({"tower": config["tower"], "text": config["text"]}))
    save_file(state, out / "model.safetensors")


def run_head(options: argparse.Namespace, name: str, seed: int) -> Mapping[str, Any]:
    """Fine-tune and evaluate one head; returns the evaluation's document."""
    folder, store = options.out / f"seed{seed}" / name, options.out / "store"

    def run() -> str:
        length = [f"train.seed={seed}", f"train.steps={options.steps}"]
        length += [f"optim.lr={options.lr}", f"optim.warmup_steps={options.warmup_steps}"]
        alone = ["data.validation=[]", "train.validate_every=null"]
        settings = load_finetune("synthetic_small", [*sizes(options), *length, *alone])
        head = HeadChoice(name=name, settings=HEADS[name])
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"head": head})})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preset.yaml").write_text(explain(settings))
        train("finetune", folder / "preset.yaml", folder / "run", store, [], "--init", options.out / "tower")
        return evaluate(folder / "run" / "weights", store, "--out", folder / "run" / "report", "--force")

    document: Mapping[str, Any] = read_or_make(folder / "summary.json", run)
    n_acc = n_acc_at(folder / "run" / "report" / "per_sample.parquet", t_acc=T_ACC)
    document["splits"][TEST]["overall"][AT_T_ACC] = n_acc
    return document


def sizes(options: argparse.Namespace) -> list[str]:
    """Settings of the tower that all heads start from."""
    tower = yaml.safe_load((options.out / "tower" / "config.yaml").read_text())["tower"]
    shape = {key: tower[key] for key in ("image_size", "patch_size", "dim", "layers", "heads", "ffn_dim")}
    shape |= {"image_size": options.image_size} if options.image_size else {}
    return [f"model.tower.{key}={value}" for key, value in shape.items()]


def overall_table(runs: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, float]]) -> str:
    """Costs of the head in addition to the tower, and the metrics over all samples."""
    rows = []
    for name, of_head in runs.items():
        one = costs[name]
        spent = [f"{one['head_parameters'] / 1e6:.2f}M", f"{one['head_macs'] / 1e6:.0f}M", f"{one['milliseconds']:.1f}"]
        overall = [run["overall"] for run in of_head]
        rows.append([name, *spent, *figures(overall), percent([run[AT_T_ACC] for run in overall])])
    tower = next(iter(costs.values()))
    title = (
        f"the tower: {(tower['parameters'] - tower['head_parameters']) / 1e6:.2f}M parameters, "
        f"{tower['tower_macs'] / 1e6:.0f}M MACs\n\n"
    )
    return title + markdown(
        ["head", "parameters", "MACs", "ms/image in all", *METRICS.values(), f"N-acc at T-acc {100 * T_ACC:.0f}"], rows
    )


def grouped_table(title: str, groups: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> str:
    """The metrics of every head for every group of samples."""
    rows = []
    for group in sorted({group for of_head in groups.values() for run in of_head for group in run}):
        for name, of_head in groups.items():
            slices = [run[group] for run in of_head if group in run]
            rows.append([group, name, str(slices[0]["count"]) if slices else "0", *figures(slices)])
    return markdown([title, "head", "samples", *METRICS.values()], rows)


def figures(slices: Sequence[Mapping[str, float]]) -> list[str]:
    """Every metric over the seeds."""
    return [percent([one.get(metric) for one in slices]) for metric in METRICS]


if __name__ == "__main__":
    main()
