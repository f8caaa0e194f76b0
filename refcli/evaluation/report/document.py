"""The report of a run: metrics overall and by group, as a JSON document and as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from refcli.evaluation.comparison import Comparison
from refcli.evaluation.metrics.conventions import CONVENTIONS, ONEREF384, ORIGINAL
from refcli.evaluation.metrics.measure import Slice, break_down, by_kind, measure, metric_ratios
from refcli.evaluation.metrics.ratios import intervals
from refcli.evaluation.report.published import published_on
from refcli.evaluation.run import MOST_LISTED, RejectedLines, Run, SplitScores

EVALUATION_SCHEMA = "refcli.evaluation/1"
SEVERAL_SCHEMA = "refcli.evaluations/1"
TABLE = ("acc50", "acc50_gated", "box_miou", "mask_miou", "mask_oiou", "n_acc", "t_acc")
"""The columns of the short table."""
MORE_FIGURES: Mapping[str, tuple[str, ...]] = {
    "boxes": ("acc75", "acc90", "macc", "center_acc", "acc50_kind_mean", "macc_kind_mean"),
    "existence": ("mcc", "auroc", "riou", "mrr"),
    "sets": ("set_precision50", "set_recall50", "density_f1", "set_f1_50", "set_f1_mask", "pmf1_box", "cgf1_box"),
    "ranked boxes": ("coco_map",),
}
"""Metrics that are printed below the table, one line per group."""


@dataclass(frozen=True)
class SplitReport:
    """The metrics of one split, as fractions in 0..1."""

    name: str
    overall: Slice
    """By the default convention."""
    kinds: Mapping[str, Slice]
    """By kind of expression, in alphabetical order; empty if the data set has no kinds."""
    breakdown: Mapping[str, Mapping[str, Slice]]
    """By group, see `break_down`."""
    conventions: Mapping[str, Slice]
    """By convention, `original` among them."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % bootstrap intervals of the overall metrics."""
    failures: tuple[tuple[str, str], ...]
    """(sample id, error) of samples without an answer, which are in no metric."""
    num_wrong: int
    """Samples without an answer that count as wrong."""
    parse_failures: tuple[tuple[str, str], ...]
    """(sample id, error) of samples whose answer could not be parsed, which count as wrong too."""
    size: int
    """Samples to score in all parts of the run together."""
    total: int
    """Samples of the split."""
    seconds: float
    from_masks: float = 0.0
    """Share of the answered boxes that are the tight boxes of masks."""
    is_gated: bool = False
    """Whether a wrong "no target" is a miss in all metrics: its answers have no candidates, or --gated was given."""
    num_gated: int = 0
    """Samples with a wrong "no target" without candidates."""
    num_found: int = 0
    """Answered targets, including the known candidates before a "no target"."""
    num_unframed: int = 0
    """Those of them that are unknown in the frame of their model."""
    num_unknown_size: int = 0
    """Samples with a target and an image of unknown size; groups by size leave them out."""

    @property
    def num_samples(self) -> int:
        """Samples of this run, including those in no metric."""
        return self.overall.count + len(self.failures)

    @property
    def parse_failure_share(self) -> float:
        """The share of the samples whose answer could not be parsed, 0..1."""
        return len(self.parse_failures) / self.num_samples if self.num_samples else 0.0


@dataclass(frozen=True)
class RunReport:
    """The metrics of one system."""

    weights: str
    """The name of its weights, or the path of its prediction file."""
    precision: str | None
    score_threshold: float
    splits: tuple[SplitReport, ...]
    problems: Mapping[str, Mapping[str, RejectedLines]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    """With another run, split by split."""
    warnings: tuple[str, ...] = ()
    """Warnings about the answers as a whole."""
    notation: str = ""
    """How the answers of another system were read; empty for models and prediction lines."""


def report_split(result: SplitScores, conventions: Sequence[str] = (ORIGINAL,)) -> SplitReport:
    """All metrics of one split."""
    scores = result.scores
    by_convention = {name: measure(scores, name) for name in conventions}
    found, from_mask, framed = (
        int(result.table[name].to_numpy().sum()) for name in ("num_found", "num_from_mask", "num_framed")
    )
    return SplitReport(
        name=result.name,
        overall=by_convention[ORIGINAL],
        kinds=by_kind(scores),
        breakdown=break_down(scores),
        conventions=by_convention,
        intervals=intervals(metric_ratios(scores), scores.image),
        failures=result.failures,
        num_wrong=len(result.wrong),
        parse_failures=result.parse_failures,
        size=result.size,
        total=result.total,
        seconds=result.seconds,
        from_masks=from_mask / found if found else 0.0,
        is_gated=result.is_gated,
        num_gated=result.num_gated,
        num_found=found,
        num_unframed=found - framed,
        num_unknown_size=int((scores.has_target & np.isnan(scores.box_share)).sum()),
    )


def report_run(run: Run, comparisons: Sequence[Comparison] = ()) -> RunReport:
    """All metrics of one run."""
    return RunReport(
        weights=run.weights,
        precision=run.precision,
        score_threshold=run.scoring.score_threshold,
        splits=tuple(report_split(split, run.scoring.conventions) for split in run.splits),
        problems=run.problems,
        comparisons=tuple(comparisons),
        warnings=run.warnings,
        notation=run.notation,
    )


def report_document(report: RunReport) -> dict[str, object]:
    """The JSON document of a run.

    `metrics` has all metrics under flat keys: `dataset/split/metric`, and `dataset/split/convention/metric` for
    conventions other than the default. Metrics are fractions in 0..1.
    """
    return {
        "schema": EVALUATION_SCHEMA,
        "weights": report.weights,
        "precision": report.precision,
        "notation": report.notation or None,
        "score_threshold": report.score_threshold,
        "conventions": {
            name: {"source": CONVENTIONS[name].source, "differs": CONVENTIONS[name].differs}
            for name in dict.fromkeys(name for split in report.splits for name in split.conventions)
        },
        "metrics": flat_metrics(report),
        "splits": {split.name: _split_document(split) for split in report.splits},
        "problems": {
            file: {kind: {"count": one.count, "first": list(one.first)} for kind, one in kinds.items()}
            for file, kinds in report.problems.items()
        },
        "warnings": list(report.warnings),
        "comparison": {one.name: _comparison_document(one) for one in report.comparisons},
    }


def combined_document(reports: Sequence[RunReport]) -> dict[str, object]:
    """The JSON document of several runs."""
    return {"schema": SEVERAL_SCHEMA, "runs": [report_document(report) for report in reports]}


def flat_metrics(report: RunReport) -> dict[str, float]:
    """All metrics of a run under their flat keys."""
    return {
        metric_key(split.name, convention, metric): value
        for split in report.splits
        for convention, part in split.conventions.items()
        for metric, value in part.metrics.items()
    }


def metric_key(split: str, convention: str, metric: str) -> str:
    """`dataset/split/metric`, or `dataset/split/convention/metric` for another convention than the default."""
    return "/".join([*split.split(":"), *([] if convention == ORIGINAL else [convention]), metric])


def _split_document(split: SplitReport) -> dict[str, object]:
    return {
        "overall": _slice_document(split.overall),
        "intervals": {name: list(interval) for name, interval in split.intervals.items()},
        "kinds": {kind: _slice_document(part) for kind, part in split.kinds.items()},
        "breakdown": {
            group: {name: _slice_document(part) for name, part in parts.items()}
            for group, parts in split.breakdown.items()
        },
        "conventions": {name: _slice_document(part) for name, part in split.conventions.items() if name != ORIGINAL},
        "published": [vars(figure) for figure in published_on(split.name)],
        "failures": [{"id": sample, "error": error} for sample, error in split.failures],
        "counted_as_wrong": split.num_wrong,
        "parse_failures": {
            "count": len(split.parse_failures),
            "share": split.parse_failure_share,
            "first": [{"id": sample, "error": error} for sample, error in split.parse_failures[:MOST_LISTED]],
        },
        "boxes_from_masks": split.from_masks,
        "gated": split.is_gated,
        "gated_answers": split.num_gated,
        "answers_without_frame": split.num_unframed,
        "unknown_sizes": split.num_unknown_size,
        "size": split.size,
        "total": split.total,
        "seconds": round(split.seconds, 3),
    }


def _slice_document(part: Slice) -> dict[str, object]:
    return {"count": part.count, "targeted": part.num_targeted, **part.metrics}


def _comparison_document(comparison: Comparison) -> dict[str, object]:
    return {
        "samples": comparison.num_samples,
        "left_out": comparison.num_left_out,
        "gated": comparison.is_gated,
        "metrics": {
            name: {
                "this": one.this,
                "other": one.other,
                "difference": one.this - one.other,
                "interval": list(one.interval),
                "p_value": one.p_value,
            }
            for name, one in comparison.metrics.items()
        },
    }


def table_rows(report: SplitReport) -> list[list[str]]:
    """Rows of (kind, count, metrics in percent): the kinds first, the overall last; a dash where not measured."""
    return [slice_row(kind, part) for kind, part in (*report.kinds.items(), ("overall", report.overall))]


def slice_row(name: str, part: Slice) -> list[str]:
    """One row of the short table."""
    return [name, str(part.count), *(percent(part.metrics.get(metric)) for metric in TABLE)]


def more_figures(report: SplitReport) -> dict[str, dict[str, float]]:
    """The measured metrics of `MORE_FIGURES` by group; groups without any are left out."""
    measured = report.overall.metrics
    groups = {
        group: {name: measured[name] for name in names if name in measured} for group, names in MORE_FIGURES.items()
    }
    return {group: figures for group, figures in groups.items() if figures}


@dataclass(frozen=True)
class ResultRow:
    """A published result, or the result of this run beside the published ones."""

    metric: str
    system: str
    training: str
    convention: str
    value: float
    """A fraction in 0..1."""
    is_second_hand: bool = False
    is_this_run: bool = False


def result_rows(report: SplitReport) -> list[ResultRow]:
    """The published results of the split, and those of this run by the same conventions, metric by metric."""
    published = published_on(report.name)
    rows = [
        ResultRow(one.metric, one.system, one.training, one.convention, one.value, is_second_hand=one.second_hand)
        for one in published
    ]
    for metric, convention in dict.fromkeys((one.metric, one.convention) for one in published):
        measured = report.conventions.get(convention)
        value = None if measured is None else measured.metrics.get(metric)
        if value is not None:
            rows.append(ResultRow(metric, "this run", "", convention, value, is_this_run=True))
    return sorted(rows, key=lambda row: row.metric)


def unscored_conventions(report: SplitReport) -> list[str]:
    """The conventions of published results that this run was not scored by, in the order of the results."""
    names = dict.fromkeys(one.convention for one in published_on(report.name))
    return [name for name in names if name not in report.conventions]


def notes(report: SplitReport) -> list[str]:
    """Restrictions that a reader of the metrics must know, as sentences without a capital or a full stop."""
    found = []
    if report.parse_failures:
        found.append(
            f"parse failures: {len(report.parse_failures)} of {report.num_samples} answers "
            f"({percent(report.parse_failure_share)} %) could not be parsed and are wrong in all metrics"
        )
    if report.is_gated:
        found.append(
            f'gated: {report.num_gated} wrong "no target" count as misses in all metrics, since they have no '
            "candidates (lines of refcli predict have them)"
        )
    if report.from_masks:
        found.append(f"from mask: {percent(report.from_masks)} % of the answered boxes are the tight boxes of masks")
    if ONEREF384 in report.conventions and report.num_unframed:
        found.append(
            f"{ONEREF384}: {report.num_unframed} of {report.num_found} answered targets have no `frame` of their "
            "model; their area in its padding is unknown and costs nothing here, so metrics may be too high"
        )
    if report.num_unknown_size:
        found.append(
            f"{report.num_unknown_size} samples have images of unknown size, so groups by size leave them out; refcli "
            "prepare-data --images FOLDER finds the sizes"
        )
    return found


def percent(value: float | None, *, decimals: int = 1, signed: bool = False) -> str:
    """A fraction in percent, or a dash for None."""
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.{decimals}f}"
