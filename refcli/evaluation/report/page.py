"""The HTML page about a run: metrics with intervals, groups, plots, published results, comparison, failures, cases."""

from __future__ import annotations

import math
import unicodedata
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from refcli.drawing.cases import case_jpeg
from refcli.errors import ImageError
from refcli.evaluation.comparison import Comparison
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.measure import METRIC_GROUPS, Slice, metric_ratios
from refcli.evaluation.metrics.ratios import intervals
from refcli.evaluation.report.cases import Case, Cases
from refcli.evaluation.report.document import (
    TABLE,
    RunReport,
    SplitReport,
    metric_key,
    notes,
    percent,
    result_rows,
    unscored_conventions,
)
from refcli.evaluation.report.plots import INK, Plot, draw_plots
from refcli.evaluation.report.published import published_on, published_size
from refcli.evaluation.run import Run, SplitScores
from refcli.evaluation.sample_score import says_none

FOLDER = Path(__file__).parent
TEMPLATE, STYLESHEET = "page.html.j2", "page.css"
MOST_LISTED = 50
"""Maximum number of quoted failures of a split, and of quoted lines of each kind of problem; all are counted."""
IMAGE_BYTES = 3_000_000
"""Limit on all drawings of a page together; base64 turns three bytes into four."""
MEANINGS: dict[str, str] = {
    "acc50": 'Acc@0.5: box IoU of at least 0.5, before "no target"',
    "acc50_gated": 'Acc@0.5 where a wrong "no target" is a miss',
    "box_miou": "mean box IoU",
    "mask_miou": "mean mask IoU",
    "mask_oiou": "sum of intersections divided by sum of unions",
    "n_acc": 'samples without a target that are answered "no target"',
    "t_acc": 'samples with a target that are not answered "no target"',
}
"""Metric -> its meaning, for the columns of the short table."""
GATED_MEANINGS: dict[str, str] = {**MEANINGS, "acc50": MEANINGS["acc50_gated"]}
"""The same where all metrics are gated."""
WORST = 'The worst: the mean of box and mask IoU, 0 after a wrong "no target". Equally bad ones are in random order.'
RANDOM = "Drawn at random from all samples that count; the seed is fixed."
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page's Content-Security-Policy: nothing in a data set or a prediction file can load or run anything."""
DARK_INK, LIGHT_INK = "#e7e9ee", "#1a1d24"
"""Text colours, as in page.css."""
_NOT_TEXT = frozenset({"Cc", "Cs"})
"""Control characters and halves of surrogate pairs: no text file may hold them."""


def render_report(
    run: Run,
    report: RunReport,
    cases: Mapping[str, Cases] | None = None,
    *,
    other: str | None = None,
    image_bytes: int = IMAGE_BYTES,
) -> bytes:
    """The page, complete in itself; the same input gives the same bytes.

    Args:
        run: the samples.
        report: their metrics.
        cases: the samples to draw, by split; None: there are no answers, which the page states.
        other: the name of the run that `report.comparisons` are with.
        image_bytes: limit on all drawings together.
    """
    drawn = cases or {}
    max_bytes = image_bytes // max(sum(len(part.worst) + len(part.random) for part in drawn.values()), 1)
    comparisons = {one.name: one for one in report.comparisons}
    sections = [
        _section(split, part, comparisons.get(part.name), _galleries(drawn.get(part.name), max_bytes))
        for split, part in zip(run.splits, report.splits, strict=True)
    ]
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            run=report,
            sections=sections,
            overview={split.name: split.overall for split in report.splits},
            num_samples=sum(split.num_samples for split in report.splits),
            has_answers=cases is not None,
            other=other,
        )
    )
    return page.encode()


def _environment() -> Environment:
    """The template's environment, in which all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "measured_columns": _measured_columns}
    environment.globals |= {
        "conventions": CONVENTIONS,
        "original": ORIGINAL,
        "meanings": MEANINGS,
        "gated_meanings": GATED_MEANINGS,
        "metric_key": metric_key,
        "most_listed": MOST_LISTED,
        "policy": POLICY,
        "stylesheet": (FOLDER / STYLESHEET).read_text(encoding="utf-8"),
        "tile_names": TABLE,
    }
    return environment


def _printable(value: object) -> object:
    """Text without the characters that no text file may hold; markup and other values as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        letter if unicodedata.category(letter) not in _NOT_TEXT or letter in "\n\t" else "\ufffd" for letter in value
    )


def _measured_columns(parts: Mapping[str, Slice]) -> list[str]:
    """The columns of the short table that any of the parts has."""
    return [name for name in TABLE if any(name in part.metrics for part in parts.values())]


def _section(
    split: SplitScores, report: SplitReport, comparison: Comparison | None, galleries: list[dict[str, Any]]
) -> dict[str, Any]:
    """All about one split."""
    scores = split.scores
    groups = {"kind": report.kinds, **report.breakdown}
    return {
        "report": report,
        "notes": notes(report),
        "plots": [_plot(plot) for plot in draw_plots(split, report)],
        "metric_groups": _measured_groups(report),
        "intervals": {
            name: report.intervals if name == ORIGINAL else intervals(metric_ratios(scores, name), scores.image)
            for name in report.conventions
        },
        "groups": {name.replace("_", " "): parts for name, parts in groups.items() if parts},
        "results": result_rows(report),
        "unscored": unscored_conventions(report),
        "sources": _sources(report.name),
        "published_size": published_size(report.name) if published_on(report.name) else None,
        "failures": [f"{sample}: {error}" for sample, error in report.failures],
        "parse_failures": [f"{sample}: {error}" for sample, error in report.parse_failures],
        "comparison": comparison,
        "galleries": galleries,
    }


def _measured_groups(report: SplitReport) -> dict[str, list[str]]:
    """The metrics by group that any convention has; groups without any are left out."""
    measured = {metric for part in report.conventions.values() for metric in part.metrics}
    groups = {group: [name for name in names if name in measured] for group, names in METRIC_GROUPS.items()}
    return {group: names for group, names in groups.items() if names}


def _plot(plot: Plot) -> dict[str, str]:
    """A plot in the ink of either colour scheme."""
    dark, light = (_data_uri("image/svg+xml", plot.svg.replace(INK, ink).encode()) for ink in (DARK_INK, LIGHT_INK))
    return {"title": plot.title, "alt": plot.alt, "dark": dark, "light": light}


def _sources(split: str) -> list[str]:
    """Where the published results come from, each with its systems."""
    sources: dict[str, list[str]] = {}
    for one in published_on(split):
        sources.setdefault(f"{one.metric}, {one.training}: {one.source}", []).append(one.system)
    return [f"{source} ({', '.join(systems)})" for source, systems in sources.items()]


def _galleries(cases: Cases | None, max_bytes: int) -> list[dict[str, Any]]:
    """The worst and the random cases of one split, each drawing of at most `max_bytes`."""
    galleries = []
    for title, about, chosen in (
        ("Worst cases", WORST, cases.worst if cases else ()),
        ("Random cases", RANDOM, cases.random if cases else ()),
    ):
        if chosen:
            drawn = [one for one in (_case(case, max_bytes) for case in chosen) if one is not None]
            missing = len(chosen) - len(drawn)
            galleries.append({"title": title, "about": about, "cases": drawn, "num_missing": missing})
    return galleries


def _case(case: Case, max_bytes: int) -> dict[str, Any] | None:
    """A case and its drawing; None if the image cannot be read."""
    example = case.example
    truth = [(region.box_xyxy, region.mask) for region in example.regions]
    answer = [(target.box_xyxy, target.mask) for target in case.answer.targets] if case.answer else []
    try:
        jpeg = case_jpeg(case.image, (example.width, example.height), truth, answer, max_bytes=max_bytes)
    except ImageError:
        return None
    return {
        "drawing": _data_uri("image/jpeg", jpeg),
        "expression": example.expression,
        "verdict": _verdict(case),
        "labels": [label for label in (example.id, example.kind) if label],
    }


class _Remark(NamedTuple):
    """A part of the verdict on a case."""

    words: str
    mark: str = ""
    """`good`, `bad` or nothing."""
    value: float | None = None
    """A fraction, which is shown in percent."""
    decimals: int = 1
    unit: str = ""


def _verdict(case: Case) -> Sequence[_Remark]:
    answer, num_regions = case.answer, len(case.example.regions)
    if answer is None:
        return [_Remark("no usable answer", "bad")]
    denied, remarks = says_none(answer), []
    if num_regions:
        if denied:
            remarks.append(_Remark('answered "no target"', "bad"))
        for name, iou in (("box IoU", case.box_iou), ("mask IoU", case.mask_iou)):
            if not math.isnan(iou):
                remarks.append(_Remark(name, "good" if iou >= 0.5 else "bad", iou))
        if num_regions > 1 or len(answer.targets) > 1:
            remarks.append(_Remark(f"{num_regions} true, {len(answer.targets)} answered"))
    elif denied:
        remarks.append(_Remark('no target, answered "no target"', "good"))
    else:
        remarks.append(_Remark("no target, answered with one", "bad"))
    if answer.no_target_score is not None:
        remarks.append(_Remark('"no target" at', "", answer.no_target_score, 0, " %"))
    return remarks


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
