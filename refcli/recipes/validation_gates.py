"""Gates of a training run: validation metrics that must not fall below a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from refcli.config.schema import FinetuneSettings, HeadChoice, ValidationMetric
from refcli.data.training.dataset import GroundingDataset
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.reporting.watching import read_validations
from refcli.errors import ConfigError, GateError, UsageError
from refcli.heads.table import head_class, head_settings
from refcli.tables import did_you_mean

OPTION = "--fail-under"


def parse_floors(texts: Sequence[str]) -> dict[str, float]:
    """`metric=value` texts as numbers.

    Raises:
        UsageError: a metric that validation does not have, or a value that is no fraction.
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


def measurable(head: HeadChoice, watched: GroundingDataset) -> list[str]:
    """The metrics that a validation of a head on some samples has."""
    config, found = head_settings(head), head_class(head.name)
    answers = {
        name for name, output in found.OUTPUTS.items() if output.switch is None or getattr(config, output.switch)
    }
    places = [
        name
        for name, has_truth in (("box", watched.has_target), ("mask", watched.has_mask))
        if name in answers and has_truth().any()
    ]
    metrics = [f"{name}_accuracy" for name in places] + [f"{name}_iou" for name in places]
    metrics += ["existence_accuracy"] if "existence" in answers else []
    return [*metrics, "score"] if metrics else []


def check_best_by(settings: FinetuneSettings, watched: GroundingDataset | None) -> None:
    """Make sure, before hours of training, that the validations will have what chooses the best checkpoint.

    Args:
        watched: the validation samples.

    Raises:
        ConfigError: they will not have it.
    """
    if watched is None:
        return
    metrics = measurable(settings.model.head, watched)
    best_by = settings.train.best_by
    if best_by not in metrics:
        has = "this head and these splits have: " + ", ".join(metrics) if metrics else "name other splits"
        raise ConfigError(
            f"the validation does not measure {best_by}, which is to choose the best checkpoint",
            where="train.best_by" if metrics else "data.validation",
            hint=has,
        )


def check_validation(run: Path, *, keep: Literal["last", "best"], floors: Mapping[str, float]) -> None:
    """Hold the validation of the weights that a run kept to its floors.

    Raises:
        GateError: a metric is below its floor, or was not measured; all of them are named.
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
