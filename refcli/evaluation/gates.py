"""Gates: lower limits on metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refcli.errors import GateError, UsageError
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.measure import METRICS
from refcli.evaluation.report.document import RunReport
from refcli.tables import did_you_mean

OPTION = "--fail-under"


def parse_gates(gates: Sequence[str], *, conventions: Sequence[str] = ()) -> dict[str, float]:
    """Parse `metric=value` and `convention/metric=value`.

    Args:
        gates: the texts.
        conventions: those that are measured; empty: unknown yet, `check_gates` checks them.

    Raises:
        UsageError: an unknown metric, a convention that is not measured, or a value that is not a fraction.
    """
    parsed: dict[str, float] = {}
    for gate in gates:
        name, equals, value = gate.partition("=")
        convention, _, metric = name.rpartition("/")
        _check_name(convention or ORIGINAL, metric, conventions)
        try:
            parsed[name] = float(value)
        except ValueError as error:
            raise UsageError(f"{gate!r} has no number", where=OPTION, hint="e.g. acc50=0.85") from error
        if not equals or not 0 <= parsed[name] <= 1:
            raise UsageError(f"{gate!r} is not a fraction in 0..1", where=OPTION, hint="e.g. acc50=0.85")
    return parsed


def _check_name(convention: str, metric: str, conventions: Sequence[str]) -> None:
    if convention not in (conventions or CONVENTIONS):
        hint = f"add --convention {convention}" if convention in CONVENTIONS else f"known: {', '.join(CONVENTIONS)}"
        raise UsageError(f"the convention {convention!r} is not measured", where=OPTION, hint=hint)
    known = METRICS if convention == ORIGINAL else CONVENTIONS[convention].metrics
    if metric not in known:
        raise UsageError(f"there is no metric called {metric!r}", where=OPTION, hint=did_you_mean(metric, known))


def check_gates(reports: Sequence[RunReport], gates: Mapping[str, float]) -> None:
    """Check every split of every run against every gate.

    Raises:
        GateError: metrics are below their gates, or were not measured; all of them are named.
    """
    missed = []
    for report in reports:
        for split in report.splits:
            where = split.name if len(reports) == 1 else f"{report.weights} {split.name}"
            for name, floor in gates.items():
                convention, _, metric = name.rpartition("/")
                part = split.conventions.get(convention or ORIGINAL)
                value = None if part is None else part.metrics.get(metric)
                if value is None:
                    missed.append(f"{where} {name} was not measured, wanted {floor:g}")
                elif value < floor:
                    missed.append(f"{where} {name} is {value:.4f}, wanted {floor:g}")
    if missed:
        raise GateError("; ".join(missed), where=OPTION)
