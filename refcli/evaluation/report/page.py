"""One page about a run: figures with intervals, slices, plots, published rows, comparison, failures and cases."""

from __future__ import annotations

import html
import math
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from refcli.errors import ImageError
from refcli.evaluation.comparison import Comparison
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.figures import METRICS, Slice, metric_terms
from refcli.evaluation.metrics.terms import intervals
from refcli.evaluation.report.case_drawing import case_jpeg
from refcli.evaluation.report.cases import Case, Cases
from refcli.evaluation.report.document import (
    TABLE,
    RunReport,
    SplitReport,
    notes,
)
from refcli.evaluation.report.plots import INK, Plot, draw_plots
from refcli.evaluation.report.published import published_on, published_size
from refcli.evaluation.run import Run, SplitScores
from refcli.evaluation.sample_score import says_none

STYLESHEET = Path(__file__).with_name("page.css")
MOST_LISTED = 50
"""Failures of a split, and lines of each sort of problem, that are quoted; all are counted."""
MEANINGS: dict[str, str] = {
    "acc50": 'Acc@0.5: box IoU of at least 0.5, before "no target"',
    "acc50_gated": 'Acc@0.5 where a wrong "no target" is a miss',
    "box_miou": "mean box IoU",
    "mask_miou": "mean mask IoU",
    "mask_oiou": "sum of intersections by sum of unions",
    "n_acc": 'samples without a target where it says "no target"',
    "t_acc": "samples with a target where it says that there is one",
}
"""Of the columns of the short table."""
GATED_MEANINGS: dict[str, str] = {"acc50": MEANINGS["acc50_gated"]}
"""Where every figure is gated."""
NO_ANSWERS = (
    "Cases are left out: this page was made from per_sample.parquet, which holds no answers. "
    "refcli evaluate --report draws them while it evaluates."
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing that a data set or a prediction file says can load or run anything."""


def render_report(
    run: Run, report: RunReport, cases: Mapping[str, Cases] | None = None, *, other: str | None = None
) -> bytes:
    """The page, complete in itself; the same input gives the same bytes.

    Args:
        run: the samples.
        report: their figures.
        cases: what to draw, by split; None: no answers are at hand, which the page says.
        other: the name of the run that `report.comparisons` are with.
    """
    names = [split.name for split in report.splits]
    splits = [_split_section(*pair) for pair in zip(run.splits, report.splits, strict=True)]
    shown = [_cases_part(name, cases) for name in names]
    warnings = "".join(f'<p class="bad">{text(warning)}</p>' for warning in report.warnings)
    comparisons = {one.name: _comparison_section(one, report.weights, other) for one in report.comparisons}
    title = f"Evaluation of {text(report.weights)}"
    links = "".join(f'<a href="#split-{at}">{text(name)}</a>' for at, name in enumerate(names))
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{_about(report)}</p>',
        warnings,
        f"<nav>{links}</nav>" if len(names) > 1 else "",
        _overview(report) if len(names) > 1 else "",
        *(
            f'<h2 id="split-{at}">{text(name)}</h2>\n{section}\n{comparisons.get(name, "")}\n{drawn}'
            for at, (name, section, drawn) in enumerate(zip(names, splits, shown, strict=True))
        ),
        _problems_section(report),
        "" if cases is not None else f"<h2>Cases</h2><p>{NO_ANSWERS}</p>",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{STYLESHEET.read_text(encoding='utf-8')}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    return page.encode()


def _about(report: RunReport) -> str:
    precision = "a prediction file" if report.precision is None else f"weights in {text(report.precision)}"
    count = sum(split.num_samples for split in report.splits)
    return (
        f"{precision}; {count:,} samples of {len(report.splits)} split{'s' * (len(report.splits) > 1)}. "
        "Figures are in %, in pixels of the original images; intervals are 95 % bootstrap intervals."
    )


def _overview(report: RunReport) -> str:
    return _short_table("split", {split.name: split.overall for split in report.splits})


def _short_table(heading: str, parts: Mapping[str, Slice]) -> str:
    """A row for each part; figures that none has are left out."""
    columns = [name for name in TABLE if any(name in part.metrics for part in parts.values())]
    rows = [
        [text(name), f"{part.count:,}", *(figure(part.metrics.get(metric)) for metric in columns)]
        for name, part in parts.items()
    ]
    return table([heading, "samples", *columns], rows)


def _split_section(split: SplitScores, report: SplitReport) -> str:
    counted = f"{report.overall.count:,} samples, {report.overall.num_targeted:,} with a target"
    if report.num_samples < report.total:
        counted += f"; the split has {report.total:,}"
    if report.num_wrong:
        counted += f"; {report.num_wrong:,} have no answer and count as wrong"
    counted += "".join(f"; {text(note)}" for note in notes(report))
    plots = "\n".join(map(plot_figure, draw_plots(split, report)))
    return "\n".join(
        [
            f'<p class="soft">{counted}.</p>',
            _tiles(report),
            f'<div class="plots">{plots}</div>' if plots else "",
            _conventions(split, report),
            _slices(report),
            _published(report),
            _failures(report),
        ]
    )


def _tiles(report: SplitReport) -> str:
    mark = ' <span class="bad">gated</span>' if report.is_gated else ""
    meanings = MEANINGS | GATED_MEANINGS if report.is_gated else MEANINGS
    tiles = [
        f'<div class="tile"><span class="soft">{name}{mark}</span>'
        f"<b>{figure(report.overall.metrics[name], decimals=1)}</b>"
        f"{interval(report.intervals.get(name))}<small>{text(meanings[name])}</small></div>"
        for name in TABLE
        if name in report.overall.metrics
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _conventions(split: SplitScores, report: SplitReport) -> str:
    """Every figure of every convention with its interval, a row for each figure."""
    scores = split.scores
    bounds = {
        name: report.intervals if name == ORIGINAL else intervals(metric_terms(scores, name), scores.image)
        for name in report.conventions
    }
    start = report.name.replace(":", "/")
    rows = [
        [
            metric,
            *(
                figure(part.metrics.get(metric), key="/".join([start, *([name] if name != ORIGINAL else []), metric]))
                + (interval(bounds[name].get(metric)) if metric in part.metrics else "")
                for name, part in report.conventions.items()
            ),
        ]
        for metric in METRICS
        if any(metric in part.metrics for part in report.conventions.values())
    ]
    notes = "".join(
        f"<li><b>{name}</b>: {text(CONVENTIONS[name].source)}. {text(CONVENTIONS[name].differs)}</li>"
        for name in report.conventions
        if name != ORIGINAL
    )
    about = f'<details><summary>What the conventions do differently</summary><ul class="small">{notes}</ul></details>'
    return "<h3>All figures</h3>" + table(["figure", *report.conventions], rows) + (about if notes else "")


def _slices(report: SplitReport) -> str:
    groups = {"kind": report.kinds, **report.breakdown}
    tables = [_short_table(group.replace("_", " "), parts) for group, parts in groups.items() if parts]
    return "<h3>By group</h3>" + "\n".join(tables) if tables else ""


def _published(report: SplitReport) -> str:
    published = published_on(report.name)
    if not published:
        return ""
    theirs = [
        [
            one.metric,
            text(one.system) + (" *" if one.second_hand else ""),
            one.training,
            one.convention,
            figure(one.value),
        ]
        for one in published
    ]
    mine = [
        [metric, "this run", "", convention, figure(value)]
        for metric, convention in dict.fromkeys((one.metric, one.convention) for one in published)
        if convention in report.conventions
        and (value := report.conventions[convention].metrics.get(metric)) is not None
    ]
    rows = sorted(mine + theirs, key=lambda row: row[0])
    sources: dict[str, list[str]] = {}
    for one in published:
        sources.setdefault(f"{one.metric}, {one.training}: {one.source}", []).append(one.system)
    size = published_size(report.name)
    counted = "" if size is None else f" The published split has {size:,} expressions, this run {report.num_samples:,}."
    return (
        '<h3>Published on this split</h3><p class="small soft">'
        f"* second-hand: from another paper or a web page.{counted}</p>"
        + table(
            ["figure", "system", "training", "convention", "%"],
            rows,
            num_texts=4,
            mine=[at for at, row in enumerate(rows) if row[1] == "this run"],
        )
        + _listed([f"{source} ({', '.join(systems)})" for source, systems in sources.items()], summary="Sources")
    )


def _comparison_section(comparison: Comparison, this: str, other: str | None) -> str:
    rows = [
        [
            name,
            figure(one.this),
            figure(one.other),
            figure(one.this - one.other, signed=True) + interval(one.interval, signed=True),
            f'<data value="{one.p_value!r}">{one.p_value:.4f}</data>',
        ]
        for name, one in comparison.metrics.items()
    ]
    left_out = (
        f"; {comparison.num_left_out:,} that count in one run only are left out" if comparison.num_left_out else ""
    )
    gated = "; all figures are gated" if comparison.is_gated else ""
    return (
        f"<h3>Compared with {text(other or 'another run')}</h3>"
        f'<p class="small soft">{text(this)} on {comparison.num_samples:,} samples of both runs{left_out}{gated}. '
        "p: paired permutation test that swaps the answers image by image.</p>"
        + table(["figure", "this", "other", "difference", "p"], rows)
    )


def _failures(report: SplitReport) -> str:
    if not report.failures:
        return ""
    return (
        f"<h3>Failures</h3><p>{len(report.failures):,} of {report.num_samples:,} samples have no answer and are in no "
        "figure.</p>" + _listed([f"{sample}: {error}" for sample, error in report.failures])
    )


def _problems_section(report: RunReport) -> str:
    parts = [
        f"<p>{lines.count:,} lines of {text(file)} answer nothing: {text(sort)}</p>" + _listed(lines.first)
        for file, sorts in report.problems.items()
        for sort, lines in sorts.items()
    ]
    return "<h2>Lines of no use</h2>" + "\n".join(parts) if parts else ""


def _listed(lines: Sequence[str], *, summary: str | None = None) -> str:
    """Lines that unfold; without a summary of their own, the first of many."""
    shown = lines if summary else lines[:MOST_LISTED]
    title = summary or ("All" if len(lines) <= MOST_LISTED else f"The first {MOST_LISTED}")
    items = "".join(f"<li>{text(line)}</li>" for line in shown)
    return f'<details><summary>{text(title)}</summary><ul class="small">{items}</ul></details>'


def _cases_part(name: str, cases: Mapping[str, Cases] | None) -> str:
    return cases_section(cases[name], max_bytes=bytes_per_picture(cases)) if cases and name in cases else ""


PICTURE_BYTES = 3_000_000
"""All drawings of a page together; base64 makes four bytes of three."""
LEGEND = (
    '<p class="small soft"><span class="key truth" style="margin-left:0"></span>truth'
    '<span class="key answer"></span>answer, before a "no target". IoU in %.</p>'
)
WORST = 'The worst: the mean of box and mask IoU, 0 after a wrong "no target". Equally bad ones are in random order.'
RANDOM = "Drawn at random from all samples that count; the seed is fixed."


def bytes_per_picture(cases: Mapping[str, Cases]) -> int:
    """What one drawing may take so that the page stays small."""
    return PICTURE_BYTES // max(sum(len(part.worst) + len(part.random) for part in cases.values()), 1)


def cases_section(cases: Cases, *, max_bytes: int) -> str:
    """The worst and the random cases of one split, each at most so many bytes."""
    return "\n".join(
        [
            *_gallery("Worst cases", WORST, cases.worst, max_bytes),
            *_gallery("Random cases", RANDOM, cases.random, max_bytes),
        ]
    )


def _gallery(title: str, about: str, cases: Sequence[Case], max_bytes: int) -> list[str]:
    if not cases:
        return []
    drawn = [_case_figure(case, max_bytes) for case in cases]
    figures = [one for one in drawn if one is not None]
    parts = [f"<h3>{title}</h3>", f'<p class="small soft">{text(about)}</p>']
    if len(figures) < len(cases):
        missing = f"{len(cases) - len(figures)} of {len(cases)} are left out: their images cannot be read."
        parts.append(f"<p>{missing}</p>")
    if figures:
        parts += [LEGEND, '<div class="cases">', *figures, "</div>"]
    return parts


def _case_figure(case: Case, max_bytes: int) -> str | None:
    """None where the image cannot be read."""
    try:
        jpeg = case_jpeg(case, max_bytes=max_bytes)
    except ImageError:
        return None
    example = case.example
    about = " · ".join(text(one) for one in (example.id, example.kind) if one)
    return (
        f"<figure>{picture(jpeg, alt=f'{example.expression}: truth and answer')}<figcaption>"
        f'<div class="says" dir="auto">{text(example.expression)}</div>'
        f'<div class="small">{_verdict(case)}</div><div class="small soft">{about}</div></figcaption></figure>'
    )


def _verdict(case: Case) -> str:
    """How it went, as markup."""
    answer, regions = case.answer, len(case.example.regions)
    if answer is None:
        return '<span class="bad">no usable answer</span>'
    none = says_none(answer)
    parts = []
    if regions and none:
        parts.append('<span class="bad">says "no target"</span>')
    if regions:
        for name, iou in (("box IoU", case.box_iou), ("mask IoU", case.mask_iou)):
            if not math.isnan(iou):
                parts.append(f'<span class="{"good" if iou >= 0.5 else "bad"}">{name} {figure(iou, decimals=1)}</span>')
        if regions > 1 or len(answer.targets) > 1:
            parts.append(f"{regions} meant, {len(answer.targets)} answered")
    else:
        said = '<span class="good">says so</span>' if none else '<span class="bad">answers something</span>'
        parts.append(f"nothing is meant: {said}")
    if answer.no_target_score is not None:
        parts.append(f'"no target" at {figure(answer.no_target_score, decimals=0)} %')
    return " · ".join(parts)


DASH = "–"
DARK = "(prefers-color-scheme: dark)"
DARK_INK, LIGHT_INK = "#e7e9ee", "#1a1d24"
"""As in page.css."""
_NOT_TEXT = frozenset({"Cc", "Cs"})
"""Control characters and halves of surrogate pairs: no file of text may hold them."""


def text(words: object) -> str:
    """Any words as text of the page, whatever is in them."""
    plain = (
        letter if unicodedata.category(letter) not in _NOT_TEXT or letter in "\n\t" else "\ufffd"
        for letter in str(words)
    )
    return html.escape("".join(plain))


def figure(value: float | None, *, key: str | None = None, decimals: int = 2, signed: bool = False) -> str:
    """A fraction in percent, with its exact value and its key in summary.json; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    title = "" if key is None else f' title="{text(key)}"'
    sign = "+" if signed else ""
    return f'<data value="{value!r}"{title}>{100 * value:{sign}.{decimals}f}</data>'


def interval(bounds: tuple[float, float] | None, *, signed: bool = False) -> str:
    """A 95 % interval in percent, or nothing where it is not known."""
    if bounds is None or math.isnan(bounds[0]):
        return ""
    sign = "+" if signed else ""
    low, high = (f"{100 * bound:{sign}.1f}" for bound in bounds)
    return f"<small>{low} {DASH} {high}</small>"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int = 1, mine: Iterable[int] = ()
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        headings: text.
        rows: cells as markup.
        num_texts: so many columns on the left are words.
        mine: numbers of rows that stand out.
    """

    def cell(name: str, at: int, content: str) -> str:
        return f"<{name}{' class=text' if at < num_texts else ''}>{content}</{name}>"

    special = set(mine)
    head = "".join(cell("th", at, text(one)) for at, one in enumerate(headings))
    body = "\n".join(
        f"<tr{' class=mine' if number in special else ''}>"
        + "".join(cell("td", at, one) for at, one in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def plot_figure(plot: Plot) -> str:
    """A plot, once in the ink of either colour scheme."""
    dark, light = (_data_uri("image/svg+xml", plot.svg.replace(INK, ink).encode()) for ink in (DARK_INK, LIGHT_INK))
    return (
        f"<figure><figcaption>{text(plot.title)}</figcaption><picture>"
        f'<source media="{DARK}" srcset="{dark}"><img src="{light}" alt="{text(plot.alt)}"></picture></figure>'
    )


def picture(jpeg: bytes, *, alt: str) -> str:
    """A JPEG inside the page."""
    return f'<img src="{_data_uri("image/jpeg", jpeg)}" alt="{text(alt)}" loading="lazy">'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
