"""Scoring predictions: samples, metrics, calibration, gates, comparison, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["SampleScore", "Scores", "measure", "score_sample"]

if TYPE_CHECKING:
    from refcli.evaluation.metrics.figures import measure
    from refcli.evaluation.samples import Scores
    from refcli.evaluation.scores import SampleScore, score_sample
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.evaluation.metrics.figures": "measure",
            "refcli.evaluation.samples": "Scores",
            "refcli.evaluation.scores": "SampleScore score_sample",
        },
    )
