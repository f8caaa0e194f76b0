"""The figures of an evaluation: overall, by kind of expression, as a document, a table and a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refcli.errors import GateError, UsageError
from refcli.evaluation.box_metrics import THRESHOLDS, box_terms
from refcli.evaluation.evaluate import SplitScores
from refcli.evaluation.generalised_metrics import generalised_terms
from refcli.evaluation.mask_metrics import mask_terms
from refcli.evaluation.scores import Scores
from refcli.evaluation.terms import Terms, intervals, values
from refcli.tables import nearest

EVALUATION_SCHEMA = "refcli.evaluation/1"
METRICS = (
    *(f"acc{round(threshold * 100)}" for threshold in THRESHOLDS),
    "acc50_gated",
    "box_miou",
    "mask_miou",
    "mask_oiou",
    *(f"pr{round(threshold * 100)}" for threshold in THRESHOLDS),
    "n_acc",
    "t_acc",
    "giou",
    "ciou",
)
TABLE = ("acc50", "acc50_gated", "box_miou", "mask_miou", "mask_oiou", "n_acc", "t_acc")
"""The columns of the short table."""


@dataclass(frozen=True)
class Slice:
    """The figures of some samples of a split; a figure that nothing was measured for is absent."""

    count: int
    num_targeted: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SplitReport:
    """The figures of one split."""

    name: str
    overall: Slice
    kinds: Mapping[str, Slice]
    """By kind of expression, in alphabetical order; empty where the data set has no kinds."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % bootstrap intervals of the overall figures."""
    failures: tuple[tuple[str, str], ...]
    seconds: float


def metric_terms(scores: Scores) -> dict[str, Terms]:
    """The terms of all metrics."""
    return box_terms(scores) | mask_terms(scores) | generalised_terms(scores)


def measure(scores: Scores) -> Slice:
    """The figures of some samples."""
    return Slice(len(scores), int(scores.has_target.sum()), values(metric_terms(scores)))


def report_split(result: SplitScores) -> SplitReport:
    """All figures of one split."""
    scores = result.scores
    kinds = {str(kind): measure(scores[scores.kind == kind]) for kind in np.unique(scores.kind) if kind}
    return SplitReport(
        name=result.name,
        overall=measure(scores),
        kinds=kinds,
        intervals=intervals(metric_terms(scores), scores.image),
        failures=result.failures,
        seconds=result.seconds,
    )


def report_document(reports: Sequence[SplitReport], *, weights: str, precision: str) -> dict[str, object]:
    """The JSON document of an evaluation; figures are fractions in 0..1, `metrics` has them under flat keys."""
    return {
        "schema": EVALUATION_SCHEMA,
        "weights": weights,
        "precision": precision,
        "metrics": {
            f"{report.name.replace(':', '/')}/{metric}": value
            for report in reports
            for metric, value in report.overall.metrics.items()
        },
        "splits": {
            report.name: {
                "overall": _slice_document(report.overall),
                "intervals": {name: list(interval) for name, interval in report.intervals.items()},
                "kinds": {kind: _slice_document(part) for kind, part in report.kinds.items()},
                "failures": [{"id": sample, "error": error} for sample, error in report.failures],
                "seconds": round(report.seconds, 3),
            }
            for report in reports
        },
    }


def _slice_document(part: Slice) -> dict[str, object]:
    return {"count": part.count, "targeted": part.num_targeted, **part.metrics}


def table_rows(report: SplitReport) -> list[list[str]]:
    """Rows of (kind, count, figures in percent), the kinds first and the overall last; a dash where not measured."""
    parts = [*report.kinds.items(), ("overall", report.overall)]
    return [
        [kind, str(part.count)] + [f"{100 * part.metrics[name]:.1f}" if name in part.metrics else "-" for name in TABLE]
        for kind, part in parts
    ]


def parse_gates(gates: Sequence[str]) -> dict[str, float]:
    """`metric=value` texts as numbers.

    Raises:
        UsageError: an unknown metric, or a value that is no fraction.
    """
    parsed: dict[str, float] = {}
    for gate in gates:
        name, equals, value = gate.partition("=")
        if name not in METRICS:
            guess = nearest(name, METRICS)
            raise UsageError(
                f"there is no metric called {name!r}",
                where="--fail-under",
                hint=(f"did you mean {guess!r}? " if guess else "") + "known: " + ", ".join(METRICS),
            )
        try:
            parsed[name] = float(value)
        except ValueError as error:
            raise UsageError(f"{gate!r} has no number", where="--fail-under", hint="e.g. acc50=0.85") from error
        if not equals or not 0 <= parsed[name] <= 1:
            raise UsageError(f"{gate!r} is not a fraction in 0..1", where="--fail-under", hint="e.g. acc50=0.85")
    return parsed


def check_gates(reports: Sequence[SplitReport], gates: Mapping[str, float]) -> None:
    """Hold every split to every gate.

    Raises:
        GateError: a figure is below its gate, or was not measured; all of them are named.
    """
    missed = []
    for report in reports:
        for name, floor in gates.items():
            value = report.overall.metrics.get(name)
            if value is None:
                missed.append(f"{report.name} {name} was not measured, wanted {floor:g}")
            elif value < floor:
                missed.append(f"{report.name} {name} is {value:.4f}, wanted {floor:g}")
    if missed:
        raise GateError("; ".join(missed), where="--fail-under")
