"""`refcli evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import Device
from refcli.cli.predict import BatchSize, Precision, PrecisionChoice, Weights

if TYPE_CHECKING:
    from rich.progress import TaskID

    from refcli.evaluation.report import SplitReport

HEADINGS = ("kind", "samples", "Acc@0.5", "gated", "box mIoU", "mask mIoU", "oIoU", "N-acc", "T-acc")
MOST_FAILURES_LISTED = 20


def command(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="The store that `refcli prepare-data` wrote.", metavar="STORE")
    ],
    splits: Annotated[
        list[str],
        typer.Option("--split", help="May be given several times.", metavar="DATASET:SPLIT"),
    ],
    weights: Weights = "builtin",
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first so many samples per split.", min=1)
    ] = None,
    device: Device = None,
    precision: Precision = PrecisionChoice.auto,
    batch_size: BatchSize = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document with every figure.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write summary.json here.", metavar="DIR")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under", help="Exit with code 4 if a figure is lower; e.g. acc50=0.85.", metavar="METRIC=X"
        ),
    ] = None,
) -> None:
    """Score a model on splits of a store, with the predictor that `refcli predict` uses.

    Everything is measured in pixels of the original pictures. Acc@0.5, box mIoU, mask mIoU and oIoU are over
    expressions that mean something, before the model's "no target"; "gated" counts a wrong "no target" as a miss;
    N-acc (T-acc) is the share of expressions without (with) a target whose existence is judged right.
    Exit code 3: some samples could not be read (they are listed and left out); 4: a --fail-under gate is not met.
    """
    import json

    from refcli.cli.output import say, write_line
    from refcli.evaluation.report import check_gates, parse_gates
    from refcli.recipes.evaluate import evaluate

    gates = parse_gates(fail_under or [])
    with SampleBars() as bars:
        result = evaluate(
            data,
            splits,
            weights=weights,
            device=device or "auto",
            precision=precision.value,
            batch_size=batch_size,
            limit=limit,
            out=out,
            on_sample=bars.show,
        )
    if json_:
        write_line(json.dumps(result.document, indent=2))
    else:
        for report in result.reports:
            write_line(_table(report, weights=str(result.document["weights"])))
    for report in result.reports:
        for sample, error in report.failures[:MOST_FAILURES_LISTED]:
            say(f"failed: {sample}: {error}")
        if report.failures:
            total = len(report.failures) + report.overall.count
            say(f"{len(report.failures)} of {total} samples of {report.name} failed and are in no figure")
    check_gates(result.reports, gates)
    if result.exit_code:
        raise typer.Exit(int(result.exit_code))


def _table(report: SplitReport, *, weights: str) -> str:
    from refcli.evaluation.report import table_rows

    rows = table_rows(report)
    count = report.overall.count + len(report.failures)
    speed = count / report.seconds if report.seconds else 0.0
    lines = [f"{report.name}  weights {weights}  {report.seconds:.1f} s, {speed:.1f} samples/s", ""]
    lines += _aligned([HEADINGS, *rows[:-1]])
    lines += [_rule(rows), *_aligned([HEADINGS, *rows])[-1:]]
    lines += ["", *_interval_lines(report.intervals)]
    return "\n".join(lines) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    first = max(len("no_target"), *(len(row[0]) for row in rows))
    widths = [first, *(len(heading) for heading in HEADINGS[1:])]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _rule(rows: Sequence[Sequence[str]]) -> str:
    return "-" * len(_aligned([HEADINGS, *rows])[0])


def _interval_lines(intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    from refcli.evaluation.report import TABLE

    known = [(name, intervals[name]) for name in TABLE if name in intervals]
    shown = ", ".join(f"{name} {100 * low:.1f}..{100 * high:.1f}" for name, (low, high) in known)
    return [f"95 % intervals (whole images resampled): {shown}"] if shown else []


class SampleBars:
    """A progress bar per split on stderr, where it is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        is_hidden = not console_err.is_terminal
        self._progress = Progress(*columns, console=console_err, transient=True, disable=is_hidden)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> SampleBars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, split: str, done: int, total: int) -> None:
        """So many samples of a split are done."""
        if split not in self._tasks:
            self._tasks[split] = self._progress.add_task(split, total=total)
        self._progress.update(self._tasks[split], completed=done)
