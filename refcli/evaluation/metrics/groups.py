"""Samples in groups: by length of the expression, size and number of what is meant, and kind."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.metrics.figures import Slice, measure
from refcli.evaluation.score_table import ScoreColumns

WORDS = ((1, "1-2 words"), (3, "3-5 words"), (6, "6-10 words"), (11, "11+ words"))
"""(from so many words on, name)."""
BOX_SHARES = ((0.0, "box < 2 %"), (0.02, "box 2-10 %"), (0.1, "box 10-30 %"), (0.3, "box 30+ %"))
"""(from this part of the image on, name); the box is the one around all that is meant."""
TARGETS = ((0, "no target"), (1, "1 target"), (2, "2 targets"), (3, "3+ targets"))


def break_down(scores: ScoreColumns) -> dict[str, dict[str, Slice]]:
    """Figures by group: `words`, `box_size` (of samples with a target) and `targets`; empty groups are left out."""
    return {
        "words": _by_level(scores, scores.num_words, WORDS),
        "box_size": _by_level(scores, scores.box_share, BOX_SHARES),
        "targets": _by_level(scores, scores.num_targets, TARGETS),
    }


def by_kind(scores: ScoreColumns) -> dict[str, Slice]:
    """Figures by kind (or category) of expression, in alphabetical order; empty where the data set has no kinds."""
    return {str(kind): measure(scores[scores.kind == kind]) for kind in np.unique(scores.kind) if kind}


def _by_level(scores: ScoreColumns, numbers: np.ndarray, levels: tuple[tuple[float, str], ...]) -> dict[str, Slice]:
    group = np.searchsorted([start for start, _ in levels], numbers, side="right") - 1
    group = np.where(np.isnan(numbers), -1, group)
    return {name: measure(scores[group == at]) for at, (_, name) in enumerate(levels) if (group == at).any()}
