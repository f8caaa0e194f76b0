"""Plots of a report, as SVG in the colours of the page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refcli.evaluation.metrics.measure import Slice
from refcli.evaluation.report.cases import mask_ious
from refcli.evaluation.report.document import SplitReport
from refcli.evaluation.run import SplitScores
from refcli.evaluation.sample_columns import ScoreColumns

WIDTH = 5.4
"""In inches of 72 points."""
HEIGHT = 3.0
ROW_HEIGHT = 0.26
MAX_BARS = 30
LONGEST_LABEL = 28
NUM_BINS = 20
BOX, MASK, THIRD, GREY, FIFTH = "#2f7fd6", "#2a9d6f", "#9a6bd0", "#8a93a3", "#c07a1f"
"""Legible on white and on black."""
INK = "#0a0b0c"
"""A placeholder, which the page replaces with the ink of a colour scheme."""
BARS = ("acc50", "mask_miou", "n_acc")
"""Groups are drawn by the first of these that was measured."""
MARKS = slice(50, 100, 10)
"""Indices of the published thresholds among hundredths."""
EXISTENCE = "no_target_score"
"""Column of the probability of "no target", in tables that have it."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "refcli",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
"""Text stays text, and equal plots are equal bytes."""


@dataclass(frozen=True)
class Plot:
    """One drawing."""

    title: str
    alt: str
    """Its content in words and numbers."""
    svg: str
    """Lines and letters in the ink of the page are `INK`."""


def draw_plots(split: SplitScores, report: SplitReport) -> list[Plot]:
    """The plots of one split, without those of metrics that were not measured."""
    ious = _measured_ious(split.scores)
    groups = {"kind": report.kinds, **report.breakdown}
    with matplotlib.rc_context(STYLE):
        plots = [_iou_histogram(ious), _accuracy_curve(ious)] if ious else []
        if EXISTENCE in split.table.column_names:
            plots += _existence_histogram(split.table.filter(split.table["counts"]))
        for metric in BARS:
            if any(metric in part.metrics for parts in groups.values() for part in parts.values()):
                plots.append(_bars(groups, metric))
                break
    return plots


def _measured_ious(scores: ScoreColumns) -> dict[str, np.ndarray]:
    """Box and mask IoU of the samples with a target, if measured."""
    mask = mask_ious(scores)
    found = {"box": np.nan_to_num(scores.box_iou[scores.has_target]), "mask": mask[~np.isnan(mask)]}
    return {name: values for name, values in found.items() if len(values)}


def _iou_histogram(ious: Mapping[str, np.ndarray]) -> Plot:
    figure, axes = _figure()
    for (name, values), colour in zip(ious.items(), (BOX, MASK), strict=False):
        _histogram(axes, values, name, colour)
    axes.set(xlim=(0, 1), xlabel="IoU", ylabel="% of samples")
    axes.legend(frameon=False)
    means = ", ".join(f"mean {name} IoU {values.mean():.3f}" for name, values in ious.items())
    return Plot("IoU of samples with a target", f"Histogram of the IoU: {means}.", _svg(figure))


def _accuracy_curve(ious: Mapping[str, np.ndarray]) -> Plot:
    figure, axes = _figure()
    thresholds = np.arange(101) / 100
    at_half = []
    for (name, values), colour in zip(ious.items(), (BOX, MASK), strict=False):
        reached = 100 * (1 - np.searchsorted(np.sort(values), thresholds, side="left") / len(values))
        axes.plot(thresholds, reached, color=colour, linewidth=1.6, label=f"{name} IoU")
        axes.plot(thresholds[MARKS], reached[MARKS], "o", color=colour, markersize=4)
        at_half.append(f"{reached[50]:.1f} % have a {name} IoU of at least 0.5")
    axes.set(xlim=(0, 1), ylim=(0, 103), xlabel="IoU threshold", ylabel="% of samples that reach it")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(frameon=False)
    return Plot("Accuracy over thresholds", f"Curve over thresholds: {'; '.join(at_half)}.", _svg(figure))


def _existence_histogram(table: pa.Table) -> list[Plot]:
    score = table[EXISTENCE].to_numpy()
    there = table["num_targets"].to_numpy() > 0
    known = ~np.isnan(score)
    groups = (("with a target", known & there, BOX), ("without a target", known & ~there, THIRD))
    if not known.any():
        return []
    figure, axes = _figure()
    for name, rows, colour in groups:
        if rows.any():
            _histogram(axes, score[rows], f"{name} ({rows.sum():,})", colour)
    axes.set(xlim=(0, 1), xlabel='probability of "no target"', ylabel="% of samples of the group")
    axes.legend(frameon=False)
    means = ", ".join(f"mean {score[rows].mean():.3f} {name}" for name, rows, _ in groups if rows.any())
    return [Plot("Existence score", f'Histogram of the probability of "no target": {means}.', _svg(figure))]


def _bars(groups: Mapping[str, Mapping[str, Slice]], metric: str) -> Plot:
    rows: list[tuple[str, float, str]] = []
    for parts, colour in zip(groups.values(), (THIRD, BOX, MASK, FIFTH, GREY), strict=False):
        measured = {name: part for name, part in parts.items() if metric in part.metrics}
        smallest_shown = sorted((part.count for part in measured.values()), reverse=True)[:MAX_BARS][-1:]
        rows += [
            (f"{_label(name)}  ({part.count:,})", 100 * part.metrics[metric], colour)
            for name, part in measured.items()
            if part.count >= smallest_shown[0]
        ]
    figure, axes = _figure(max(HEIGHT, 0.7 + ROW_HEIGHT * len(rows)))
    places = np.arange(len(rows))
    axes.barh(places, [value for _, value, _ in rows], color=[colour for *_, colour in rows], height=0.72)
    for place, (_, value, _) in enumerate(rows):
        axes.text(value + 1, place, f"{value:.1f}", va="center", fontsize=8)
    axes.set_yticks(places, [label for label, *_ in rows])
    axes.set(xlim=(0, 110), ylim=(len(rows) - 0.4, -0.6), xlabel=f"{metric}, %")
    axes.tick_params(axis="y", length=0)
    alt = "; ".join(f"{label} {value:.1f}" for label, value, _ in rows)
    return Plot(f"{metric} by group (samples)", f"Bars: {alt}.", _svg(figure))


def _histogram(axes: Axes, values: np.ndarray, label: str, colour: str) -> None:
    weights = np.full(len(values), 100 / len(values))
    bins = np.linspace(0, 1, NUM_BINS + 1).tolist()
    axes.hist(values, bins=bins, weights=weights, color=colour, alpha=0.3)
    axes.hist(values, bins=bins, weights=weights, color=colour, histtype="step", linewidth=1.4, label=label)


def _label(name: str) -> str:
    """A name shortened to fit beside an axis; letters that XML cannot hold become question marks."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= LONGEST_LABEL else plain[: LONGEST_LABEL - 1] + "…"


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue().decode()
