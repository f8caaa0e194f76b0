"""What Label Studio exports after an annotator has accepted the predictions of tasks and corrected some."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Results = list[dict[str, Any]]


def write_export(tasks: Path, export: Path, corrections: Mapping[str, Callable[[Results], Results]]) -> Path:
    """Write the export of a file of tasks.

    Args:
        tasks: as `refcli convert-answers --to label-studio` writes them.
        export: the file to write.
        corrections: image -> function from the accepted results to the corrected ones; other images are accepted as
            they are.
    """
    rows = json.loads(tasks.read_text())
    export.write_text(json.dumps([_exported(number, task, corrections) for number, task in enumerate(rows, 1)]))
    return export


def _exported(
    number: int, task: dict[str, Any], corrections: Mapping[str, Callable[[Results], Results]]
) -> dict[str, Any]:
    (prediction,) = task["predictions"]
    accepted = [dict(result) for result in prediction["result"]]
    correct = corrections.get(task["data"]["image_path"], list)
    annotation = {
        "id": 10 + number, "completed_by": 1, "result": correct(accepted), "was_cancelled": False,
        "ground_truth": False, "created_at": "2026-12-01T16:58:50.913441Z", "updated_at": "2026-12-01T16:58:50.913463Z",
        "lead_time": None, "prediction": prediction | {"id": number}, "parent_prediction": number, "task": number,
    }  # fmt: skip
    return {
        "id": number, "annotations": [annotation], "drafts": [], "predictions": [number], "data": task["data"],
        "meta": {}, "inner_id": number, "total_annotations": 1, "cancelled_annotations": 0, "project": 1,
    }  # fmt: skip


def moved(result: dict[str, Any], by_percent: float) -> dict[str, Any]:
    """A rectangle that the annotator moved to the right."""
    value = result["value"]
    return result | {"value": value | {"x": value["x"] + by_percent}}


def label_of(result: dict[str, Any]) -> str:
    """The label of a rectangle or brush mask."""
    return str(result["value"][result["type"]][0])
