"""Scoring predictions: samples, metrics, calibration, gates, comparison, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["SampleScore", "ScoreColumns", "measure", "score_sample"]

if TYPE_CHECKING:
    from refcli.evaluation.metrics.measure import measure
    from refcli.evaluation.sample_columns import ScoreColumns
    from refcli.evaluation.sample_score import SampleScore, score_sample
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.evaluation.metrics.measure": "measure",
            "refcli.evaluation.sample_columns": "ScoreColumns",
            "refcli.evaluation.sample_score": "SampleScore score_sample",
        },
    )
