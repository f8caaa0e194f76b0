"""Make the packaged model from a training run: choose its "no target" threshold, store it as bf16, record its scores.

    python tools/package_model.py RUN/weights --calibrate STORE synthetic:val --score OTHER_STORE synthetic:test \
        --out refcli/weights/builtin
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from refcli.contracts.batch import Batch
from refcli.data.store.read import Store
from refcli.data.training.collate import Collate
from refcli.data.training.dataset import GroundingDataset
from refcli.evaluation.calibration import calibrate_grounder, with_threshold
from refcli.recipes.evaluate import ModelSelection, SplitSelection, evaluate_model
from refcli.weights.directory import LoadedWeights, load_weights, save_weights
from refcli.weights.layout import read_meta, write_meta

MIN_T_ACC = 0.96
"""A wrong "no target" is worse for users than a wrong box: at most 4 % of the targets may be denied."""
BATCH_SIZE = 32


def package_model(
    weights: Path, *, calibrate: tuple[Path, str], score: tuple[Path, str], out: Path, min_t_acc: float = MIN_T_ACC
) -> None:
    """Write `out` as a bf16 weights directory with the model's scores in meta.json.

    Args:
        weights: the weights directory of a run; its model has an existence output.
        calibrate: store and split on which the existence threshold is chosen.
        score: store and split on which the model is scored.
        out: the directory to write.
        min_t_acc: see `calibrate_existence`.

    Raises:
        RefcliError: the model has no existence output, the samples all have or all lack a target, ...
    """
    loaded = load_weights(str(weights))
    chosen = calibrate_grounder(loaded.grounder, _batches(loaded, *calibrate), min_t_acc=min_t_acc, bf16=True)
    settings = with_threshold(loaded.settings, round(chosen.threshold, 4))
    meta: dict[str, object] = {**loaded.meta, "existence_threshold_from": calibrate[1]}
    save_weights(out, loaded.grounder, settings, meta=meta, dtype="bf16")
    scored = evaluate_model(SplitSelection(score[0], [score[1]]), ModelSelection(str(out)))
    write_meta(out, {**read_meta(out), "scores": scored.document})


def _batches(loaded: LoadedWeights, store: Path, split: str) -> Iterator[Batch]:
    """One pass over a split, without augmentation."""
    samples = GroundingDataset(Store(store), [split], tower=loaded.settings.tower, augment=None)
    collate = Collate(loaded.tokenizer)
    for start in range(0, len(samples), BATCH_SIZE):
        yield collate([samples[index, 0] for index in range(start, min(start + BATCH_SIZE, len(samples)))])


def main() -> None:
    """Parse the arguments and package the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--calibrate", nargs=2, metavar=("STORE", "SPLIT"), required=True)
    parser.add_argument("--score", nargs=2, metavar=("STORE", "SPLIT"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    calibrate, score = (Path(given.calibrate[0]), given.calibrate[1]), (Path(given.score[0]), given.score[1])
    package_model(given.weights, calibrate=calibrate, score=score, out=given.out)


if __name__ == "__main__":
    main()
