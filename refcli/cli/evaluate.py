"""`refcli evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.answers.formats import ANSWER_FORMATS, INPUT_RULE, REFCLI, AnswerNotation
from refcli.cli.evaluate_options import ANSWER_OPTIONS, given_options, refuse_scoring, refuse_unused
from refcli.cli.options import WEIGHTS_METAVAR, WEIGHTS_NAMES, BatchSize, Data, Device, Precision, PrecisionChoice
from refcli.cli.output import MAX_FAILURES_LISTED, log, printable, write_line
from refcli.errors import UsageError
from refcli.text.vlm_text import COORDINATES, INPUT_PIXELS

if TYPE_CHECKING:
    from refcli.evaluation.comparison import Comparison
    from refcli.evaluation.report.document import RunReport, SplitReport
    from refcli.evaluation.run import RejectedLines


class MissingChoice(str, Enum):
    """How a sample without an answer is counted."""

    error = "error"
    wrong = "wrong"


def command(
    context: typer.Context,
    parts: Annotated[
        list[Path] | None,
        typer.Argument(help="With --merge: the --out folders of the parts.", metavar="DIR", show_default=False),
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
            help="Score a prediction file (also gzipped) of any system instead of running a model.",
            metavar="FILE",
        ),
    ] = None,
    answers_format: Annotated[
        str,
        typer.Option(
            "--answers-format",
            help="The format of the prediction files: " + ", ".join(ANSWER_FORMATS) + ".",
            metavar="NAME",
        ),
    ] = REFCLI,
    coordinates: Annotated[
        str | None,
        typer.Option(
            "--coordinates",
            help="Space of the boxes, if not that of the format: " + ", ".join(COORDINATES) + ".",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input-size",
            help=f"With {INPUT_PIXELS}: size of the model's input, for lines without it; {INPUT_RULE}: by the rule of "
            "its processor.",
            metavar=f"WxH|{INPUT_RULE}",
            show_default=False,
        ),
    ] = None,
    convert_only: Annotated[
        Path | None,
        typer.Option(
            "--convert-only",
            help="Write the answers as prediction lines of refcli instead of scoring them.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    missing: Annotated[
        MissingChoice,
        typer.Option(
            "--missing",
            help="Exclude a sample without a usable answer (error; exit code 3), or count it as wrong in all metrics.",
        ),
    ] = MissingChoice.error,
    conventions: Annotated[
        list[str] | None,
        typer.Option(
            "--convention",
            help="Also score by another convention: oneref384, lavt480, cgformer, cris, rela480, rela480-text, gsva, "
            "ref-l4, first-box, groundingme, all.",
            metavar="NAME",
        ),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", help="Lowest score of the boxes that grec_* count.", min=0, max=1)
    ] = 0.7,
    gated: Annotated[
        bool,
        typer.Option(
            "--gated",
            help='Count a wrong "no target" as a miss in all metrics, also in --compare. A split in which a wrong '
            '"no target" has no candidates is always scored this way.',
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N samples per split.", min=1)] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Score only part I of N; merge the parts with --merge.", metavar="I/N")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the parts given as arguments into one run.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            help="Paired test against the per_sample.parquet of another run (or its folder).",
            metavar="FILE|DIR",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = PrecisionChoice.auto,
    batch_size: BatchSize = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document with all metrics.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write summary.json and per_sample.parquet here.", metavar="DIR"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier evaluation in --out, or the file of --convert-only.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write OUT/report.html: one page with plots and drawn cases.")
    ] = False,
    num_cases: Annotated[
        int | None,
        typer.Option(
            "--cases",
            help="With --report: number of worst samples to draw, and of random ones. Default: 12.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            help="Exit with code 4 if a metric is lower, e.g. acc50=0.85 or rela480/giou=0.6.",
            metavar="METRIC=X",
        ),
    ] = None,
) -> None:
    """Score models or prediction files on splits of a store.

    A prediction file may come from any system: it holds prediction lines of refcli, or answers in the declared
    --answers-format.

    All metrics are in pixels of the original images. Acc@0.5, box mIoU, mask mIoU and oIoU are over expressions with
    a target, before the system's "no target" if its answers have candidates; "gated" counts a wrong "no target" as a
    miss; N-acc (T-acc) is the share of expressions without (with) a target whose existence is judged correctly. --json
    has all metrics: Pr@X, gIoU, cIoU, GREC, sets of boxes, Recall@k, groups by words, size and number of targets, and
    the conventions.
    Exit code 3: samples have no answer, or lines were rejected (all are counted); 4: a --fail-under gate is not met.
    """
    import json

    from refcli.cli.progress import ProgressBars
    from refcli.data.shard import Shard
    from refcli.errors import ExitCode
    from refcli.evaluation.gates import check_gates, parse_gates
    from refcli.evaluation.metrics.conventions import choose_conventions
    from refcli.evaluation.report.document import combined_document
    from refcli.evaluation.results import exit_code
    from refcli.evaluation.run import Scoring
    from refcli.recipes.evaluate import EvaluationSettings, ModelSelection, SplitSelection, evaluate

    models = weights or ([] if predictions or merge else ["builtin"])
    refuse_unused(context, parts or [], merges=merge, has_model=bool(models))
    notation = AnswerNotation.declare(answers_format, coordinates=coordinates, input_size=input_size)
    if convert_only is not None:
        refuse_scoring(context, num_files=len(predictions or ()))
        _convert((predictions or [])[0], data, splits or [], convert_only, notation, force=force)
        return
    if not predictions and (given := given_options(context, ANSWER_OPTIONS)):
        raise UsageError(
            "this has no effect without --predictions", where=", ".join(given), hint="add --predictions FILE"
        )
    scoring = Scoring(choose_conventions(conventions or []), score_threshold, missing.value, gated)
    gates = parse_gates(fail_under or [], conventions=() if merge else scoring.conventions)
    part = Shard() if shard is None else Shard.parse(shard)
    settings = EvaluationSettings(
        data=None if data is None else SplitSelection(data, tuple(splits or ()), limit, part),
        systems=(
            *(ModelSelection(name, device or "auto", precision.value, batch_size) for name in models),
            *(predictions or ()),
        ),
        notation=notation,
        merges=merge,
        parts=tuple(parts or ()),
        scoring=scoring,
        compare=compare,
        out=out,
        force=force,
        writes_page=report,
        num_cases=num_cases,
    )
    with ProgressBars() as bars:
        evaluations = evaluate(settings, progress=bars.for_group)

    reports = [evaluation.report for evaluation in evaluations]
    for evaluation in evaluations:
        if evaluation.page is not None:
            log(f"wrote {evaluation.page}")
    if json_:
        document = evaluations[0].document if len(evaluations) == 1 else combined_document(reports)
        write_line(json.dumps(document, indent=2))
    else:
        _write_tables(reports, other=evaluations[0].other)
    for one in reports:
        _log_failures(one)
    check_gates(reports, gates)
    code = exit_code(evaluations)
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def _convert(
    predictions: Path, data: Path | None, splits: Sequence[str], out: Path, notation: AnswerNotation, *, force: bool
) -> None:
    """Write prediction lines; exit with code 3 if lines were rejected."""
    from refcli.errors import ExitCode
    from refcli.recipes.evaluate import SplitSelection, convert_predictions

    if data is None:
        raise UsageError("no store is given", where="--data", hint="add --data STORE")
    done = convert_predictions(predictions, SplitSelection(data, tuple(splits)), out, notation=notation, force=force)
    for warning in done.warnings:
        log(f"warning: {warning}")
    _log_problems({predictions.name: done.problems})
    counts = (
        f"answers: {done.num_answers:,}, targets: {done.num_targets:,}, parse failures: {done.num_parse_failures:,}"
    )
    log(f"wrote {out} ({counts})")
    if done.exit_code is not ExitCode.OK:
        raise typer.Exit(int(done.exit_code))


def _log_failures(report: RunReport) -> None:
    """Report failed samples and rejected lines on stderr: count all, quote the first of each kind."""
    for warning in report.warnings:
        log(f"warning: {warning}")
    for split in report.splits:
        for sample, error in split.failures[:MAX_FAILURES_LISTED]:
            log(f"failed: {sample}: {error}")
        if split.failures:
            log(f"{len(split.failures)} of {split.num_samples} samples of {split.name} failed and are in no metric")
        for sample, error in split.parse_failures[:MAX_FAILURES_LISTED]:
            log(f"parse failure: {sample}: {error}")
        if split.num_wrong:
            log(f"{split.num_wrong} of {split.num_samples} samples of {split.name} have no answer and count as wrong")
    _log_problems(report.problems)


def _log_problems(problems: Mapping[str, Mapping[str, RejectedLines]]) -> None:
    for file, kinds in problems.items():
        for kind, lines in kinds.items():
            for line in lines.first[:MAX_FAILURES_LISTED]:
                log(f"{kind}: {line}")
            log(f"{lines.count} lines of {file} were rejected: {kind}")


HEADINGS = ("samples", "Acc@0.5", "gated", "box mIoU", "mask mIoU", "oIoU", "N-acc", "T-acc")
BEFORE_THE_GATE = frozenset({"Acc@0.5", "box mIoU", "mask mIoU", "oIoU"})
"""Columns that are marked "gated" if they count a wrong "no target" as a miss."""
CONVENTION_METRICS = ("acc50", "mask_miou", "mask_oiou", "pr50", "pr70", "pr90", "giou", "ciou", "n_acc", "t_acc")
BENCHMARK_METRICS = ("acc75", "macc")
NAME_WIDTH = len("no_target")
NOTABLE = 0.05
"""Differences with a p-value below this are marked."""


def _write_tables(reports: Sequence[RunReport], *, other: str | None) -> None:
    if len(reports) == 1:
        for split in reports[0].splits:
            write_line(split_text(split, weights=reports[0].weights))
    else:
        write_line(systems_text(reports))
    for report in reports:
        for comparison in report.comparisons:
            write_line(comparison_text(comparison, this=report.weights, other=other or ""))


def split_text(report: SplitReport, *, weights: str) -> str:
    """All tables of one split of one system."""
    from refcli.evaluation.report.document import TABLE, more_figures, notes, percent, table_rows

    speed = report.num_samples / report.seconds if report.seconds else 0.0
    title = f"{report.name}  weights {weights}  {report.seconds:.1f} s, {speed:.1f} samples/s"
    table = aligned([("kind", *(_marked(name, report.is_gated) for name in HEADINGS)), *table_rows(report)])
    lines = [printable(title), "", *table[:-1], "-" * len(table[-1]), table[-1], ""]
    known = [(name, report.intervals[name]) for name in TABLE if name in report.intervals]
    if known:
        shown = ", ".join(f"{name} {percent(low)}..{percent(high)}" for name, (low, high) in known)
        lines.append(f"95 % intervals (whole images resampled): {shown}")
    for group, figures in more_figures(report).items():
        lines.append(f"{group}: " + ", ".join(f"{name} {percent(value)}" for name, value in figures.items()))
    lines += notes(report)
    if len(report.conventions) > 1:
        columns = _convention_columns(report.conventions)
        rows = [
            [name, *(percent(part.metrics.get(metric)) for metric in columns)]
            for name, part in report.conventions.items()
        ]
        lines += ["", *aligned([("convention", *columns), *rows])]
    return "\n".join([*lines, *_published_lines(report)]) + "\n"


def _published_lines(report: SplitReport) -> list[str]:
    from refcli.evaluation.report.document import percent, result_rows, unscored_conventions
    from refcli.evaluation.report.published import published_size

    rows = [
        [
            row.metric,
            row.system + (" (*)" if row.is_second_hand else ""),
            row.training,
            row.convention,
            percent(row.value, decimals=2),
        ]
        for row in result_rows(report)
    ]
    if not rows:
        return []
    unscored = unscored_conventions(report)
    hint = ["", f"to score this run by their conventions: {' '.join(f'--convention {name}' for name in unscored)}"]
    size = published_size(report.name)
    counted = "" if size is None else f"; the published split has {size}, this run scored {report.overall.count}"
    return [
        "",
        f"published on {report.name}{counted} (*: second-hand; sources are in the JSON document)",
        "",
        *aligned([("metric", "system", "training", "convention", "%"), *rows], num_names=4),
        *(hint if unscored else []),
    ]


def systems_text(reports: Sequence[RunReport]) -> str:
    """A table with a row per split and system, and one per convention if several were scored."""
    from refcli.evaluation.report.document import percent, slice_row

    names = dict.fromkeys(split.name for report in reports for split in report.splits)
    results = [
        (name, _marked(report.weights, split.is_gated), split)
        for name in names
        for report in reports
        for split in report.splits
        if split.name == name
    ]
    rows = [[name, *slice_row(system, split.overall)] for name, system, split in results]
    headings = ["split", "system", *HEADINGS]
    if any(split.parse_failures for _, _, split in results):
        headings.append("parse failures")
        for row, (_, _, split) in zip(rows, results, strict=True):
            row.append(f"{len(split.parse_failures)} ({percent(split.parse_failure_share)} %)")
    lines = aligned([headings, *rows], num_names=2)
    columns = _convention_columns({name for *_, split in results for name in split.conventions})
    by_convention = [
        [name, system, convention, *(percent(part.metrics.get(metric)) for metric in columns)]
        for name, system, split in results
        if len(split.conventions) > 1
        for convention, part in split.conventions.items()
    ]
    if by_convention:
        lines += ["", *aligned([("split", "system", "convention", *columns), *by_convention], num_names=3)]
    return "\n".join(lines) + "\n"


def _convention_columns(names: Collection[str]) -> tuple[str, ...]:
    """The columns of the table of conventions: those of box benchmarks only beside one of their conventions."""
    from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL

    reported = {metric for name in names if name != ORIGINAL for metric in CONVENTIONS[name].metrics}
    return (*CONVENTION_METRICS, *(metric for metric in BENCHMARK_METRICS if metric in reported))


def _marked(name: str, is_gated: bool) -> str:
    """The name of a column or a system, marked if all its metrics are after the gate."""
    return f"{name} (gated)" if is_gated and (name in BEFORE_THE_GATE or name not in HEADINGS) else name


def comparison_text(comparison: Comparison, *, this: str, other: str) -> str:
    """Differences between two runs; a star marks those with a p-value below 0.05."""
    from refcli.evaluation.report.document import percent

    rows = [
        [
            name,
            percent(one.this, decimals=2),
            percent(one.other, decimals=2),
            percent(one.this - one.other, decimals=2, signed=True),
            "..".join(percent(bound, decimals=2, signed=True) for bound in one.interval),
            f"{one.p_value:.4f}" + ("*" if one.p_value < NOTABLE else " "),
        ]
        for name, one in comparison.metrics.items()
    ]
    left_out = f", {comparison.num_left_out} in one run only are left out" if comparison.num_left_out else ""
    title = f"{comparison.name}  {this} against {other}, {comparison.num_samples} samples{left_out}"
    title += ", all metrics gated" if comparison.is_gated else ""
    table = aligned([("metric", "this", "other", "difference", "95 %", "p "), *rows])
    return "\n".join([printable(title), "", *table]) + "\n"


def aligned(rows: Sequence[Sequence[str]], *, num_names: int = 1) -> list[str]:
    """Rows as printable lines: the first columns to the left, numbers to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    widths[0] = max(widths[0], NAME_WIDTH)
    return [
        "  ".join(
            cell.ljust(width) if at < num_names else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
