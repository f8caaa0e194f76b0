"""Make the packaged model from a training run: calibrate "no target", store as bf16, keep its scores beside it.

    python -m refcli.recipes.package_model RUN/weights --calibrate STORE synthetic:val \
        --score OTHER_STORE synthetic:test --out refcli/weights/builtin
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from refcli.data.store.read import Store, StoreSplit
from refcli.errors import ConfigError
from refcli.evaluation.calibration import calibrate_existence, with_threshold
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.recipes.evaluate import evaluate
from refcli.weights.directory import load_weights, save_weights
from refcli.weights.layout import read_meta, write_meta

MIN_T_ACC = 0.96
"""A wrong "no target" costs a user more than a wrong box: at most 4 % of what is there may be denied."""


def package_model(
    weights: Path, *, calibrate: tuple[Path, str], score: tuple[Path, str], out: Path, min_t_acc: float = MIN_T_ACC
) -> dict[str, object]:
    """Write `out` as a bf16 weights directory whose meta.json says how good it is; returns that meta.

    Args:
        weights: the weights directory of a run; its model has an existence output.
        calibrate: store and split on which the existence threshold is chosen.
        score: store and split that the figures come from.
        out: the directory to write.
        min_t_acc: see `calibrate_existence`.
    """
    loaded = load_weights(str(weights))
    existence, has_target = ask_existence(Predictor(loaded, precision="bf16"), Store(calibrate[0]).split(calibrate[1]))
    threshold = round(calibrate_existence(existence, has_target, min_t_acc=min_t_acc), 4)
    settings = with_threshold(loaded.settings, threshold)
    grounder = load_weights(str(weights)).grounder  # the predictor has turned the first one into bf16
    meta: dict[str, object] = {**loaded.meta, "existence_threshold_from": calibrate[1]}
    save_weights(out, grounder, settings, meta=meta, dtype="bf16")
    write_meta(out, {**read_meta(out), "scores": evaluate(score[0], [score[1]], weights=str(out)).document})
    return read_meta(out)


def ask_existence(predictor: Predictor, split: StoreSplit) -> tuple[np.ndarray, np.ndarray]:
    """Existence probability of every sample of a split, and whether it has a target.

    Raises:
        ConfigError: the model has no existence output.
    """
    examples = [split[index] for index in range(len(split))]
    requests = (Request(item.id, item.image, item.expression, split.image_path(item)) for item in examples)
    answers = [answered.answer for answered in predictor.answer_requests(requests, raw=True)]
    absent = [answer.no_target_score for answer in answers if answer.no_target_score is not None]
    if len(absent) != len(examples):
        raise ConfigError("the model has no existence output", where="head.settings.existence")
    return 1 - np.array(absent), np.array([bool(item.regions) for item in examples])


def main() -> None:
    """Read the arguments and package; the figures are in meta.json."""
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
