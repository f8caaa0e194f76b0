"""All metrics of some samples, by convention: overall, and of groups of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refcli.evaluation.metrics.boxes import (
    BOX_THRESHOLDS,
    RECALL_AT,
    THRESHOLDS,
    box_ratios,
    grec_ratios,
    recall_ratios,
)
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.detection import coco_map
from refcli.evaluation.metrics.masks import generalised_mask_ratios, mask_ratios
from refcli.evaluation.metrics.no_target import auroc, mcc, no_target_ratios
from refcli.evaluation.metrics.ratios import Ratio, values
from refcli.evaluation.metrics.robust import robust_ratios
from refcli.evaluation.metrics.sets import cg_f1, positive_micro_f1, set_ratios
from refcli.evaluation.sample_columns import ScoreColumns

METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    "boxes": (
        *(f"acc{round(threshold * 100)}" for threshold in BOX_THRESHOLDS),
        "macc",
        "acc50_gated",
        "box_miou",
        "center_acc",
        "acc50_kind_mean",
        "macc_kind_mean",
    ),
    "masks": ("mask_miou", "mask_oiou", *(f"pr{round(threshold * 100)}" for threshold in THRESHOLDS)),
    "existence": ("n_acc", "t_acc", "mcc", "auroc"),
    "masks and existence": ("giou", "ciou", "riou", "mrr"),
    "sets": (
        *("grec_pr_iou", "grec_pr_giou", "grec_n_acc", "grec_t_acc"),
        *("set_recall50", "set_precision50", "set_recall", "set_precision"),
        *("density_f1_50", "density_f1", "set_f1_50", "set_f1", "set_f1_mask"),
        *("pmf1_box", "pmf1_mask", "cgf1_box", "cgf1_mask"),
    ),
    "ranked boxes": (*(f"recall{k}_{protocol}" for protocol in ("any", "union") for k in RECALL_AT), "coco_map"),
}
"""Names of all metrics by group; those of `original`, of which other conventions report some."""
METRICS = tuple(name for names in METRIC_GROUPS.values() for name in names)

WORDS = ((1, "1-2 words"), (3, "3-5 words"), (6, "6-10 words"), (11, "11+ words"))
"""(minimum number of words, name)."""
BOX_SHARES = ((0.0, "box < 2 %"), (0.02, "box 2-10 %"), (0.1, "box 10-30 %"), (0.3, "box 30+ %"))
"""(minimum share of the image, name) of the box around all targets."""
BOX_SIDES = ((0.0, "box < 128 px"), (128.0, "box 128-256 px"), (math.nextafter(256, 257), "box > 256 px"))
"""(minimum square root of the area in pixels, name) of the same box: small, medium and large of Ref-L4."""
TARGETS = ((0, "no target"), (1, "1 target"), (2, "2 targets"), (3, "3+ targets"))


@dataclass(frozen=True)
class Slice:
    """The metrics of some samples of a split; one that was not measured is absent."""

    count: int
    num_targeted: int
    metrics: Mapping[str, float]


def metric_ratios(scores: ScoreColumns, convention: str = ORIGINAL) -> dict[str, Ratio]:
    """The ratios of all metrics that a convention reports, except those of `other_figures`."""
    rules = CONVENTIONS[convention]
    ratios = {
        **box_ratios(scores, rules),
        **mask_ratios(scores, rules),
        **no_target_ratios(scores, rules),
        **generalised_mask_ratios(scores, rules),
    }
    if convention == ORIGINAL:
        return {
            **ratios,
            **grec_ratios(scores),
            **set_ratios(scores),
            **positive_micro_f1(scores),
            **robust_ratios(scores),
            **recall_ratios(scores),
        }
    return {name: ratio for name, ratio in ratios.items() if name in rules.metrics}


def other_figures(scores: ScoreColumns, measured: Mapping[str, float]) -> dict[str, float]:
    """Metrics that are no ratios of sums over samples: they have no intervals and are not compared between runs.

    Args:
        scores: the samples.
        measured: their other metrics.
    """
    pmf1 = {name: value for name, value in measured.items() if name.startswith("pmf1")}
    found = {"mcc": mcc(~scores.says_none, scores.has_target), "auroc": auroc(scores), "coco_map": coco_map(scores)}
    return {name: value for name, value in found.items() if value is not None} | cg_f1(scores, pmf1)


def measure(scores: ScoreColumns, convention: str = ORIGINAL) -> Slice:
    """The metrics of some samples."""
    measured = values(metric_ratios(scores, convention))
    if convention == ORIGINAL:
        measured |= other_figures(scores, measured)
    return Slice(len(scores), int(scores.has_target.sum()), measured)


def break_down(scores: ScoreColumns) -> dict[str, dict[str, Slice]]:
    """Metrics by group; empty groups are left out.

    `words`, `box_size` (share of the image) and `box_pixels` (both of samples with a target), and `targets`.
    """
    sides = np.full(len(scores), np.nan) if scores.box_side is None else scores.box_side
    return {
        "words": _by_level(scores, scores.num_words, WORDS),
        "box_size": _by_level(scores, scores.box_share, BOX_SHARES),
        "box_pixels": _by_level(scores, sides, BOX_SIDES),
        "targets": _by_level(scores, scores.num_targets, TARGETS),
    }


def by_kind(scores: ScoreColumns) -> dict[str, Slice]:
    """Metrics by kind (or category) of expression, in alphabetical order; empty where the data set has no kinds."""
    return {str(kind): measure(scores[scores.kind == kind]) for kind in np.unique(scores.kind) if kind}


def _by_level(scores: ScoreColumns, numbers: np.ndarray, levels: tuple[tuple[float, str], ...]) -> dict[str, Slice]:
    group = np.searchsorted([start for start, _ in levels], numbers, side="right") - 1
    group = np.where(np.isnan(numbers), -1, group)
    return {name: measure(scores[group == at]) for at, (_, name) in enumerate(levels) if (group == at).any()}
