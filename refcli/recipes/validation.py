"""Validation of a training run: checks before it, the existence threshold after it, and gates on its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from refcli.config.schema import FinetuneSettings, HeadChoice, ValidationMetric
from refcli.data.training.dataset import GroundingDataset
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.validation import read_validations
from refcli.errors import ConfigError, DataError, GateError, UsageError
from refcli.evaluation.calibration import Calibrated, CalibratedScores, calibrate_grounder, calibrate_scores
from refcli.grounder import Grounder
from refcli.heads.base import has_existence_output
from refcli.heads.table import head_class, head_settings
from refcli.recipes.training import Data, validation_batches
from refcli.tables import did_you_mean

OPTION = "--fail-under"


def check_validation(settings: FinetuneSettings, samples: GroundingDataset | None) -> None:
    """Check, before hours of training, that validation can choose the best checkpoint and calibrate the threshold.

    Args:
        samples: the validation samples.

    Raises:
        ConfigError: it will not measure `train.best_by`, or the head has no existence output to calibrate.
        DataError: there is nothing to calibrate on.
    """
    if samples is not None:
        require_metric(settings.train.best_by, measurable(settings.model.head, samples))
    check_calibration(settings, samples)


def measurable(head: HeadChoice, samples: GroundingDataset) -> list[str]:
    """The metrics that the validation of a head on these samples has."""
    config, found = head_settings(head), head_class(head.name)
    outputs = {
        name for name, output in found.OUTPUTS.items() if output.switch is None or getattr(config, output.switch)
    }
    regions = [
        name
        for name, has_truth in (("box", samples.has_target), ("mask", samples.has_mask))
        if name in outputs and has_truth().any()
    ]
    metrics = [f"{name}_accuracy" for name in regions] + [f"{name}_iou" for name in regions]
    metrics += ["existence_accuracy"] if "existence" in outputs else []
    return [*metrics, "score"] if metrics else []


def require_metric(best_by: str, metrics: Sequence[str]) -> None:
    """Check that a validation measures the metric that selects the best checkpoint.

    Raises:
        ConfigError: it is not.
    """
    if best_by not in metrics:
        raise ConfigError(
            f"the validation does not measure {best_by}, which selects the best checkpoint",
            where="train.best_by" if metrics else "data.validation",
            hint="this head and these splits have: " + ", ".join(metrics) if metrics else "name other splits",
        )


def check_calibration(settings: FinetuneSettings, samples: GroundingDataset | None) -> None:
    """Check that the existence threshold can be calibrated, if `train.existence_min_t_acc` asks for it.

    Raises:
        ConfigError: the head has no existence output.
        DataError: the validation samples all have a target, or none has.
    """
    where = "train.existence_min_t_acc"
    if settings.train.existence_min_t_acc is None:
        return
    if not has_existence_output(head_settings(settings.model.head)):
        raise ConfigError("the head has no existence output", where=where, hint="model.head.settings.existence=true")
    has_target = samples.has_target() if samples else np.zeros(0, dtype=bool)
    if has_target.all() or not has_target.any():
        raise DataError(
            f"of the {len(has_target):,} validation samples {has_target.sum():,} have a target; a threshold needs both "
            "kinds",
            where=where,
            hint="data.validation, data.validation_samples",
        )


def calibrate(trained: Grounder, settings: FinetuneSettings, data: Data) -> Calibrated:
    """Choose the existence threshold of a trained model on the validation samples."""
    min_t_acc = settings.train.existence_min_t_acc
    assert min_t_acc is not None
    with closing(validation_batches(settings, data)) as batches:
        return calibrate_grounder(trained, batches, min_t_acc=min_t_acc, bf16=settings.train.precision == "bf16")


def calibrate_score(
    trained: Grounder, settings: FinetuneSettings, data: Data, *, existence_threshold: float
) -> CalibratedScores:
    """Choose the score threshold of a trained model on the validation samples."""
    bf16 = settings.train.precision == "bf16"
    with closing(validation_batches(settings, data)) as batches:
        return calibrate_scores(trained, batches, existence_threshold=existence_threshold, bf16=bf16)


def parse_floors(texts: Sequence[str]) -> dict[str, float]:
    """Minimum values of validation metrics from `metric=value` texts.

    Raises:
        UsageError: an unknown metric, or a value that is not a fraction.
    """
    floors: dict[str, float] = {}
    known = get_args(ValidationMetric)
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise UsageError(
                f"validation has no metric called {name!r}",
                where=f"{OPTION} {text}",
                hint=did_you_mean(name, known),
            )
        try:
            floors[name] = float(value)
        except ValueError:
            floors[name] = float("nan")
        if not 0 <= floors[name] <= 1:
            raise UsageError(f"{value!r} is not a fraction in 0..1", where=f"{OPTION} {text}", hint=f"{name}=0.85")
    return floors


def check_floors(run: Path, *, keep: Literal["last", "best"], floors: Mapping[str, float]) -> None:
    """Compare the validation of the weights that a run kept with its floors.

    Raises:
        GateError: a metric is below its floor, or was not measured; the message names all of them.
    """
    if not floors:
        return
    validations = read_validations(run)
    best = RunDir(run).checkpoints.pointer("best") if keep == "best" else None
    step = best.step if best else max(validations, default=0)
    metrics = validations.get(step, {})
    missed = [
        f"{name} is {metrics[name]:.4f} after step {step}, wanted {floor:g}"
        if name in metrics
        else f"{name} was not measured, wanted {floor:g}"
        for name, floor in floors.items()
        if not metrics.get(name, -1.0) >= floor
    ]
    if missed:
        raise GateError("; ".join(missed), where=OPTION)
