"""All metrics of some samples, by convention: overall, and of groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refcli.evaluation.metrics.boxes import RECALL_AT, THRESHOLDS, box_ratios, grec_ratios, recall_ratios
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.masks import generalised_mask_ratios, mask_ratios
from refcli.evaluation.metrics.no_target import no_target_ratios
from refcli.evaluation.metrics.ratios import Ratio, values
from refcli.evaluation.sample_columns import ScoreColumns

METRICS = (
    *(f"acc{round(threshold * 100)}" for threshold in THRESHOLDS),
    "acc50_gated",
    "box_miou",
    "mask_miou",
    "mask_oiou",
    *(f"pr{round(threshold * 100)}" for threshold in THRESHOLDS),
    "n_acc",
    "t_acc",
    "giou",
    "ciou",
    "grec_pr_iou",
    "grec_pr_giou",
    "grec_n_acc",
    "grec_t_acc",
    *(f"recall{k}_{protocol}" for protocol in ("any", "union") for k in RECALL_AT),
)
"""Names of all metrics; those of `original`, of which other conventions report some."""

WORDS = ((1, "1-2 words"), (3, "3-5 words"), (6, "6-10 words"), (11, "11+ words"))
"""(minimum number of words, name)."""
BOX_SHARES = ((0.0, "box < 2 %"), (0.02, "box 2-10 %"), (0.1, "box 10-30 %"), (0.3, "box 30+ %"))
"""(minimum share of the image, name) of the box around all targets."""
TARGETS = ((0, "no target"), (1, "1 target"), (2, "2 targets"), (3, "3+ targets"))


@dataclass(frozen=True)
class Slice:
    """The metrics of some samples of a split; one that was not measured is absent."""

    count: int
    num_targeted: int
    metrics: Mapping[str, float]


def metric_ratios(scores: ScoreColumns, convention: str = ORIGINAL) -> dict[str, Ratio]:
    """The ratios of all metrics that a convention reports."""
    rules = CONVENTIONS[convention]
    ratios = {
        **box_ratios(scores, rules),
        **mask_ratios(scores, rules),
        **no_target_ratios(scores, rules),
        **generalised_mask_ratios(scores, rules),
    }
    if convention == ORIGINAL:
        return ratios | grec_ratios(scores) | recall_ratios(scores)
    return {name: ratio for name, ratio in ratios.items() if name in rules.metrics}


def measure(scores: ScoreColumns, convention: str = ORIGINAL) -> Slice:
    """The metrics of some samples."""
    return Slice(len(scores), int(scores.has_target.sum()), values(metric_ratios(scores, convention)))


def break_down(scores: ScoreColumns) -> dict[str, dict[str, Slice]]:
    """Metrics by group: `words`, `box_size` (of samples with a target) and `targets`; empty groups are left out."""
    return {
        "words": _by_level(scores, scores.num_words, WORDS),
        "box_size": _by_level(scores, scores.box_share, BOX_SHARES),
        "targets": _by_level(scores, scores.num_targets, TARGETS),
    }


def by_kind(scores: ScoreColumns) -> dict[str, Slice]:
    """Metrics by kind (or category) of expression, in alphabetical order; empty where the data set has no kinds."""
    return {str(kind): measure(scores[scores.kind == kind]) for kind in np.unique(scores.kind) if kind}


def _by_level(scores: ScoreColumns, numbers: np.ndarray, levels: tuple[tuple[float, str], ...]) -> dict[str, Slice]:
    group = np.searchsorted([start for start, _ in levels], numbers, side="right") - 1
    group = np.where(np.isnan(numbers), -1, group)
    return {name: measure(scores[group == at]) for at, (_, name) in enumerate(levels) if (group == at).any()}
