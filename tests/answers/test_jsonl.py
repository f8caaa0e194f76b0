"""Answers survive the round trip through JSON lines."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from refcli.answers.jsonl import answer_from_json, answer_to_json
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask

MASK = np.zeros((20, 30), dtype=bool)
MASK[3:9, 4:17] = True
FOUND = Answer(
    "7",
    "a.jpg",
    "die größte 猫",
    30,
    20,
    (Target((1.25, 2.0, 17.5, 9.0), 0.875, encode_mask(MASK)),),
    False,
    0.125,
    "w",
)
NONE = Answer("8", "a.jpg", "x", 30, 20, (), True, None, "w")
FAILED = Answer("9", "b.jpg", "x", 0, 0, (), False, None, "w", "broken")


@pytest.mark.parametrize("answer", [FOUND, NONE, FAILED])
def test_an_answer_survives_the_round_trip(answer):
    assert answer_from_json(json.loads(json.dumps(answer_to_json(answer)))) == answer


def test_the_record_has_exactly_the_documented_fields_in_order():
    record = answer_to_json(FOUND)
    assert list(record) == [
        "schema", "id", "image", "expression", "width", "height", "targets", "no_target", "no_target_score", "weights",
        "error",
    ]  # fmt: skip
    assert record["schema"] == "refcli.prediction/1"
    assert list(record["targets"][0]) == ["box", "score", "mask", "box_source"]
    assert (
        answer_to_json(Answer("1", "", "", 1, 1, (Target((0, 0, 1, 1), 1.0),), False, None, "w"))["targets"][0]["mask"]
        is None
    )


def test_the_mask_is_one_that_coco_tools_decode():
    mask = json.loads(json.dumps(answer_to_json(FOUND)))["targets"][0]["mask"]
    np.testing.assert_array_equal(coco.decode(mask).astype(bool), MASK)


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "other/1"},
        {"targets": None},
        {"targets": [{"box": [1, 2, 3], "score": 1, "mask": None}]},
        {"width": "wide"},
        {"no_target": "false"},
        {"targets": {}},
        {"id": None},
    ],
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(DataError):
        answer_from_json({**answer_to_json(FOUND), **damage})


def test_a_missing_field_is_refused():
    record = answer_to_json(FOUND)
    del record["no_target_score"]
    with pytest.raises(DataError, match="no_target_score"):
        answer_from_json(record)
