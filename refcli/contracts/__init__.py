"""The records that pass between layers: Example, Batch, Prediction, Answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["RLE", "Answer", "Batch", "Example", "FramedTarget", "Prediction", "Region", "Target", "Targets"]

if TYPE_CHECKING:
    from refcli.contracts.batch import Batch, Targets
    from refcli.contracts.example import RLE, Example, Region
    from refcli.contracts.prediction import Answer, FramedTarget, Prediction, Target
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.contracts.batch": "Batch Targets",
            "refcli.contracts.example": "RLE Example Region",
            "refcli.contracts.prediction": "Answer FramedTarget Prediction Target",
        },
    )
