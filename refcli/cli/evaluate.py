"""`refcli evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import WEIGHTS_METAVAR, WEIGHTS_NAMES, BatchSize, Data, Device, Precision, PrecisionChoice

if TYPE_CHECKING:
    from rich.progress import TaskID

    from refcli.errors import ExitCode
    from refcli.evaluation.report.document import RunReport
    from refcli.recipes.evaluate import Evaluation, OnSample

MOST_FAILURES_LISTED = 20


class MissingChoice(str, Enum):
    """What a sample without an answer is."""

    error = "error"
    wrong = "wrong"


def command(
    context: typer.Context,
    parts: Annotated[
        list[Path] | None,
        typer.Argument(help="With --merge: the parts' --out folders.", metavar="DIR", show_default=False),
    ] = None,
    data: Data = None,
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="May be given several times.", metavar="DATASET:SPLIT")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            "-w",
            help=f"The model to score: {WEIGHTS_NAMES}; several give one table. Default: builtin.",
            metavar=WEIGHTS_METAVAR,
        ),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            "--predictions",
            help="Score the lines of a prediction file (.jsonl, also gzipped) of any system instead of running one.",
            metavar="FILE",
        ),
    ] = None,
    missing: Annotated[
        MissingChoice,
        typer.Option(
            "--missing",
            help="A sample without a usable answer is left out as an error (exit code 3), or wrong in every figure.",
        ),
    ] = MissingChoice.error,
    conventions: Annotated[
        list[str] | None,
        typer.Option(
            "--convention",
            help="Also count as others do: oneref384, lavt480, cgformer, cris, rela480, rela480-text, gsva, all.",
            metavar="NAME",
        ),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", help="Boxes from this score on count in grec_*.", min=0, max=1)
    ] = 0.7,
    gated: Annotated[
        bool,
        typer.Option(
            "--gated",
            help='Count a wrong "no target" as a miss in every figure, also in --compare. A split in which a wrong '
            '"no target" has no candidates is always scored so.',
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first so many samples per split.", min=1)
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Score only part I of N; join the parts with --merge.", metavar="I/N")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the parts named as arguments into one run.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            help="Paired test against another run's per_sample.parquet (or its folder).",
            metavar="FILE|DIR",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = PrecisionChoice.auto,
    batch_size: BatchSize = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document with every figure.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write summary.json and per_sample.parquet here.", metavar="DIR"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier evaluation in --out.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write OUT/report.html: one page with plots and drawn cases.")
    ] = False,
    num_cases: Annotated[
        int | None,
        typer.Option(
            "--cases",
            help="With --report: draw so many of the worst samples, and as many at random. Default: 12.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            help="Exit with code 4 if a figure is lower; e.g. acc50=0.85 or rela480/giou=0.6.",
            metavar="METRIC=X",
        ),
    ] = None,
) -> None:
    """Score models, or prediction files of any system, on splits of a store.

    Everything is measured in pixels of the original images. Acc@0.5, box mIoU, mask mIoU and oIoU are over
    expressions with a target, before the system's "no target" if its answers have candidates; "gated" counts a wrong
    "no target" as a miss; N-acc (T-acc) is the share of expressions without (with) a target whose existence is
    judged right. --json has all figures: Pr@X, gIoU, cIoU, GREC, Recall@k, groups by words, size and number of targets,
    and the conventions.
    Exit code 3: samples have no answer, or lines cannot be used (all are counted); 4: a --fail-under gate is not met.
    """
    import json

    from refcli.cli.evaluate_checks import check_folder, check_systems, refuse_unused
    from refcli.cli.evaluate_folders import own_folder, report_folder, write_result
    from refcli.cli.output import write_line
    from refcli.data.shard import Shard
    from refcli.errors import ExitCode, UsageError
    from refcli.evaluation.comparison import check_comparable
    from refcli.evaluation.gates import check_gates, parse_gates
    from refcli.evaluation.metrics.conventions import choose_conventions
    from refcli.evaluation.report.cases import NUM_CASES
    from refcli.evaluation.report.document import several_document
    from refcli.evaluation.run import Scoring, read_run
    from refcli.recipes.evaluate import evaluate, evaluate_file, merge_evaluations, system_name

    if merge and (data or splits or weights or predictions or shard or limit or conventions):
        raise UsageError("--merge takes the parts as they are", where="--merge", hint="give only folders and --out")
    if parts and not merge:
        raise UsageError(f"what is {str(parts[0])!r} for?", where="arguments", hint="folders are for --merge")
    if data is None and not merge:
        raise UsageError("there is no store to take the truth from", where="--data")
    report_at = report_folder(out, parts or []) if report else None
    if num_cases is not None and (merge or not report):
        raise UsageError("no cases are drawn here", where="--cases", hint="they need --report and no --merge")
    drawn = (NUM_CASES if num_cases is None else num_cases) if report else 0
    other = None if compare is None else read_run(compare)
    scoring = Scoring(choose_conventions(conventions or []), score_threshold, missing.value, gated)
    gates = parse_gates(fail_under or [], conventions=() if merge else scoring.conventions)
    part = None if shard is None else Shard.parse(shard)
    models = weights or ([] if predictions or merge else ["builtin"])
    refuse_unused(context, has_model=bool(models), merges=merge)
    check_systems(models, predictions or [])
    if other is not None and not merge:
        check_comparable(splits or [], scoring, other, has_candidates=bool(models))
    if force and out is None:
        raise UsageError("there is nothing to replace", where="--force", hint="give --out DIR")
    num_systems = 1 if merge else len(models) + len(predictions or [])
    if out is not None:
        names = [*map(system_name, models), *map(str, predictions or [])]
        check_folder(out, [own_folder(name, at, of=num_systems) for at, name in enumerate(names, start=1)], force=force)

    def evaluations() -> Iterator[Evaluation]:
        if data is None:
            yield merge_evaluations(parts or [])
            return
        for name in models:
            yield evaluate(
                data,
                splits or [],
                weights=name,
                device=device or "auto",
                precision=precision.value,
                batch_size=batch_size,
                limit=limit,
                shard=part,
                scoring=scoring,
                num_cases=drawn,
                on_sample=bars.of(system_name(name)),
            )
        for file in predictions or []:
            yield evaluate_file(
                file,
                data,
                splits or [],
                limit=limit,
                shard=part,
                scoring=scoring,
                num_cases=drawn,
                on_sample=bars.of(file.name),
            )

    results = []
    with SampleBars() as bars:
        for number, plain in enumerate(evaluations(), start=1):
            result = plain if other is None else plain.compared_with(other)
            own = own_folder(result.run.weights, number, of=num_systems)
            results.append(write_result(result, own, out=out, report_at=report_at, force=force))
    reports = [result.report for result in results]
    if json_:
        document = results[0].document if len(results) == 1 else several_document(reports)
        write_line(json.dumps(document, indent=2))
    else:
        _write_tables(reports, other=None if other is None else other.weights)
    for one in reports:
        _log_failures(one)
    check_gates(reports, gates)
    code = _worst(results)
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def _write_tables(reports: Sequence[RunReport], *, other: str | None) -> None:
    from refcli.cli.evaluate_tables import comparison_text, split_text, systems_text
    from refcli.cli.output import write_line

    if len(reports) == 1:
        for split in reports[0].splits:
            write_line(split_text(split, weights=reports[0].weights))
    else:
        write_line(systems_text(reports))
    for report in reports:
        for comparison in report.comparisons:
            write_line(comparison_text(comparison, this=report.weights, other=other or ""))


def _worst(results: Sequence[Evaluation]) -> ExitCode:
    from refcli.errors import ExitCode

    codes = {result.exit_code for result in results}
    if codes == {ExitCode.FAILED}:
        return ExitCode.FAILED
    return ExitCode.OK if codes == {ExitCode.OK} else ExitCode.PARTIAL


def _log_failures(report: RunReport) -> None:
    """What could not be used, on stderr: counted in full, the first of each sort listed."""
    from refcli.cli.output import log

    for warning in report.warnings:
        log(f"warning: {warning}")
    for split in report.splits:
        for sample, error in split.failures[:MOST_FAILURES_LISTED]:
            log(f"failed: {sample}: {error}")
        if split.failures:
            log(f"{len(split.failures)} of {split.num_samples} samples of {split.name} failed and are in no figure")
        if split.num_wrong:
            log(f"{split.num_wrong} of {split.num_samples} samples of {split.name} have no answer and count as wrong")
    for file, sorts in report.problems.items():
        for sort, lines in sorts.items():
            for line in lines.first[:MOST_FAILURES_LISTED]:
                log(f"{sort}: {line}")
            log(f"{lines.count} lines of {file} answer nothing: {sort}")


class SampleBars:
    """Progress bars on stderr, one per system and split, where it is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        is_hidden = not console_err.is_terminal
        self._progress = Progress(*columns, console=console_err, transient=True, disable=is_hidden)

    def __enter__(self) -> SampleBars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def of(self, system: str) -> OnSample:
        """What a system reports its progress to."""
        from refcli.cli.output import printable

        tasks: dict[str, TaskID] = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = self._progress.add_task(printable(f"{system} {split}"), total=total)
            self._progress.update(tasks[split], completed=done)

        return show
