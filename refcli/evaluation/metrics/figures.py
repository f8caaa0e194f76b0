"""All metrics of some samples, by convention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refcli.evaluation.metrics.boxes import RECALL_AT, THRESHOLDS, box_terms, grec_terms, recall_terms
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.metrics.generalised import generalised_terms
from refcli.evaluation.metrics.masks import mask_terms
from refcli.evaluation.metrics.terms import Terms, values
from refcli.evaluation.score_table import ScoreColumns

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
"""Names of all figures; those of `original`, of which other conventions report some."""


@dataclass(frozen=True)
class Slice:
    """The figures of some samples of a split; a figure that nothing was measured for is absent."""

    count: int
    num_targeted: int
    metrics: Mapping[str, float]


def metric_terms(scores: ScoreColumns, convention: str = ORIGINAL) -> dict[str, Terms]:
    """The terms of all metrics that a convention reports."""
    rules = CONVENTIONS[convention]
    terms = box_terms(scores, rules) | mask_terms(scores, rules) | generalised_terms(scores, rules)
    if convention == ORIGINAL:
        return terms | grec_terms(scores) | recall_terms(scores)
    return {name: pair for name, pair in terms.items() if name in rules.metrics}


def measure(scores: ScoreColumns, convention: str = ORIGINAL) -> Slice:
    """The figures of some samples."""
    return Slice(len(scores), int(scores.has_target.sum()), values(metric_terms(scores, convention)))
