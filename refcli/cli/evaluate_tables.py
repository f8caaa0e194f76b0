"""Figures of `refcli evaluate` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from refcli.cli.output import printable

if TYPE_CHECKING:
    from refcli.evaluation.comparison import Comparison
    from refcli.evaluation.report.document import RunReport, SplitReport

HEADINGS = ("samples", "Acc@0.5", "gated", "box mIoU", "mask mIoU", "oIoU", "N-acc", "T-acc")
BEFORE_THE_GATE = frozenset({"Acc@0.5", "box mIoU", "mask mIoU", "oIoU"})
"""Columns that say "gated" where a wrong "no target" is a miss in them, too."""
CONVENTION_METRICS = ("acc50", "mask_miou", "mask_oiou", "pr50", "pr70", "pr90", "giou", "ciou", "n_acc", "t_acc")
NAME_WIDTH = len("no_target")
NOTABLE = 0.05
"""Differences with a p-value below this are marked."""


def split_text(report: SplitReport, *, weights: str) -> str:
    """All tables of one split of one system."""
    from refcli.evaluation.report.document import about_boxes, about_frame, about_gate, about_sizes, table_rows

    speed = report.num_samples / report.seconds if report.seconds else 0.0
    rows = table_rows(report)
    title = f"{report.name}  weights {weights}  {report.seconds:.1f} s, {speed:.1f} samples/s"
    lines = [printable(title), ""]
    table = aligned([("kind", *(gated(name, report.is_gated) for name in HEADINGS)), *rows])
    lines += [*table[:-1], "-" * len(table[-1]), table[-1], "", *_interval_lines(report.intervals)]
    about = about_gate(report), about_boxes(report), about_frame(report), about_sizes(report)
    lines += [note for note in about if note]
    lines += _convention_lines(report) + _published_lines(report)
    return "\n".join(lines) + "\n"


def systems_text(reports: Sequence[RunReport]) -> str:
    """One table of several systems, a row for each on each split; and one by convention where there are others."""
    from refcli.evaluation.report.document import percent, slice_row

    splits = dict.fromkeys(split.name for report in reports for split in report.splits)
    rows = [
        [name, *slice_row(gated(report.weights, split.is_gated), split.overall)]
        for name in splits
        for report in reports
        for split in report.splits
        if split.name == name
    ]
    lines = aligned([("split", "system", *HEADINGS), *rows], num_names=2)
    by_convention = [
        [
            name,
            gated(report.weights, split.is_gated),
            convention,
            *(percent(part.metrics.get(metric)) for metric in CONVENTION_METRICS),
        ]
        for name in splits
        for report in reports
        for split in report.splits
        if split.name == name and len(split.conventions) > 1
        for convention, part in split.conventions.items()
    ]
    if by_convention:
        headings = ("split", "system", "convention", *CONVENTION_METRICS)
        lines += ["", *aligned([headings, *by_convention], num_names=3)]
    return "\n".join(lines) + "\n"


def gated(name: str, is_gated: bool) -> str:
    """The name of a column or a system, marked where its figures are all after the gate."""
    return f"{name} (gated)" if is_gated and (name in BEFORE_THE_GATE or name not in HEADINGS) else name


def comparison_text(comparison: Comparison, *, this: str, other: str) -> str:
    """Differences between two runs; a star marks those with a p-value below 0.05."""
    rows = [
        [
            name,
            hundredths(one.this),
            hundredths(one.other),
            f"{100 * (one.this - one.other):+.2f}",
            f"{100 * one.interval[0]:+.2f}..{100 * one.interval[1]:+.2f}",
            f"{one.p_value:.4f}" + ("*" if one.p_value < NOTABLE else " "),
        ]
        for name, one in comparison.metrics.items()
    ]
    left_out = f", {comparison.num_left_out} in one run only are left out" if comparison.num_left_out else ""
    title = f"{comparison.name}  {this} against {other}, {comparison.num_samples} samples{left_out}"
    title += ", all figures gated" if comparison.is_gated else ""
    return (
        "\n".join([printable(title), "", *aligned([("metric", "this", "other", "difference", "95 %", "p "), *rows])])
        + "\n"
    )


def hundredths(value: float) -> str:
    """A fraction in percent with two decimals, as papers print it."""
    return f"{100 * value:.2f}"


def aligned(rows: Sequence[Sequence[str]], *, num_names: int = 1) -> list[str]:
    """Rows as lines, printable: the first columns to the left, figures to the right."""
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


def _interval_lines(intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    from refcli.evaluation.report.document import TABLE

    known = [(name, intervals[name]) for name in TABLE if name in intervals]
    shown = ", ".join(f"{name} {100 * low:.1f}..{100 * high:.1f}" for name, (low, high) in known)
    return [f"95 % intervals (whole images resampled): {shown}"] if shown else []


def _convention_lines(report: SplitReport) -> list[str]:
    from refcli.evaluation.report.document import percent

    if len(report.conventions) == 1:
        return []
    rows = [
        [name, *(percent(part.metrics.get(metric)) for metric in CONVENTION_METRICS)]
        for name, part in report.conventions.items()
    ]
    return ["", *aligned([("convention", *CONVENTION_METRICS), *rows])]


def _published_lines(report: SplitReport) -> list[str]:
    from refcli.evaluation.report.published import published_on, published_size

    figures = published_on(report.name)
    if not figures:
        return []
    size = published_size(report.name)
    rows = [
        [
            one.metric,
            one.system + (" (*)" if one.second_hand else ""),
            one.training,
            one.convention,
            hundredths(one.value),
        ]
        for one in figures
    ]
    mine = {
        (one.metric, one.convention): report.conventions[one.convention].metrics.get(one.metric)
        for one in figures
        if one.convention in report.conventions
    }
    rows += [
        [metric, "this run", "", convention, hundredths(value)]
        for (metric, convention), value in mine.items()
        if value is not None
    ]
    rows.sort(key=lambda row: row[0])
    counted = "" if size is None else f"; the published split has {size}, this run scored {report.overall.count}"
    headings = ("metric", "system", "training", "convention", "%")
    return [
        "",
        f"published on {report.name}{counted} (*: second-hand; sources are in the JSON document)",
        "",
        *aligned([headings, *rows], num_names=4),
    ]
