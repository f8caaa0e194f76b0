"""VLM-R1's lists: rows with the same id are kept apart, and solution is only compared."""

from __future__ import annotations

import json

from refcli.data.sources.record import Problems
from refcli.data.sources.vlm_r1 import SOURCE


def test_a_repeated_id_gets_the_number_of_its_row_and_the_box_list_counts(tmp_path):
    row = {"id": 7, "image": "a.jpg", "normal_caption": "a cup", "bbox_list": [[1, 2, 30, 40]]}
    rows = [
        {**row, "solution": [1, 2, 31, 41]},
        {**row, "solution": [1, 2, 30, 40]},
        {**row, "solution": [9, 9, 90, 90]},
    ]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(rows))
    problems = Problems()

    records = list(SOURCE.read({"val": path}, SOURCE.settings(), dataset="mine", problems=problems))

    assert [one.expressions[0].id for one in records] == ["7", "7-1", "7-2"]
    assert {one.regions[0].box_xyxy for one in records} == {(1, 2, 30, 40)}
    assert problems.counts == {"repeated_id": 2, "solution_differs_from_box": 1}
