"""The true answers to a split of a store, as the lines of a prediction file."""

from __future__ import annotations

import json
from pathlib import Path

from refcli.answers.jsonl import answer_to_json
from refcli.contracts.prediction import Answer, Target
from refcli.data.store.read import Store


def true_lines(store: Path, split: str) -> list[str]:
    """A line for each example, in the order of the split."""
    examples = Store(store).split(split)
    lines = []
    for one in (examples[index] for index in range(len(examples))):
        targets = tuple(Target(region.box_xyxy, 1.0, region.mask) for region in one.regions)
        answer = Answer(one.id, one.image, one.expression, one.width, one.height, targets, not targets, None, "truth")
        lines.append(json.dumps(answer_to_json(answer)))
    return lines
