"""Answers as the JSON lines that `predict` writes and other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refcli.contracts.example import RLE
from refcli.contracts.prediction import PREDICTION_SCHEMA, Answer, Target
from refcli.errors import DataError

BOX_DECIMALS = 2
SCORE_DECIMALS = 5
FROM_HEAD, FROM_MASK = "head", "mask"
"""Where a box comes from: the model says it, or it is the tight box of the mask."""


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """The record of schema `refcli.prediction/1`, `schema` first.

    Boxes are absolute pixels of the original image (EXIF orientation applied), xyxy, half-open, to 0.01 pixel; masks
    are compressed COCO run lengths with `counts` as text.
    """
    return {
        "schema": PREDICTION_SCHEMA,
        "id": answer.id,
        "image": answer.image,
        "expression": answer.expression,
        "width": answer.width,
        "height": answer.height,
        "targets": [_target_to_json(target) for target in answer.targets],
        "no_target": answer.no_target,
        "no_target_score": None if answer.no_target_score is None else round(answer.no_target_score, SCORE_DECIMALS),
        "weights": answer.weights,
        "error": answer.error,
    }


def answer_from_json(record: Mapping[str, Any]) -> Answer:
    """The answer that a record holds.

    Raises:
        DataError: another schema, or a missing or malformed field.
    """
    if record.get("schema") != PREDICTION_SCHEMA:
        raise DataError(
            f"the record is not of schema {PREDICTION_SCHEMA}", where="schema", hint=f"found {record.get('schema')!r}"
        )
    try:
        return Answer(
            id=str(_kind_of(record, "id", str, int)),
            image=str(record["image"]),
            expression=str(record["expression"]),
            width=int(record["width"]),
            height=int(record["height"]),
            targets=tuple(_target_from_json(target) for target in _kind_of(record, "targets", list)),
            no_target=_kind_of(record, "no_target", bool),
            no_target_score=None if record["no_target_score"] is None else float(record["no_target_score"]),
            weights=str(record["weights"]),
            error=_kind_of(record, "error", str, type(None)),
        )
    except KeyError as error:
        raise DataError(f"the prediction record has no {error.args[0]!r}", where=str(record.get("id"))) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the prediction record is malformed: {error!r}", where=str(record.get("id"))) from error


def _kind_of(record: Mapping[str, Any], key: str, *kinds: type) -> Any:  # noqa: ANN401 - one of `kinds`
    """A field of a record. A text such as "false" is no truth value, a boolean no number."""
    value = record[key]
    if type(value) not in kinds:
        raise TypeError(f"{key} is {value!r}")
    return value


def _target_to_json(target: Target) -> dict[str, Any]:
    mask = None
    if target.mask is not None:
        mask = {"size": list(target.mask.size), "counts": target.mask.counts.decode("ascii")}
    return {
        "box": [round(side, BOX_DECIMALS) for side in target.box_xyxy],
        "score": round(target.score, SCORE_DECIMALS),
        "mask": mask,
        "box_source": FROM_MASK if target.box_is_from_mask else FROM_HEAD,
    }


def _target_from_json(record: Mapping[str, Any]) -> Target:
    left, top, right, bottom = (float(side) for side in record["box"])
    mask = record["mask"]
    rle = None
    if mask is not None:
        height, width = mask["size"]
        rle = RLE((int(height), int(width)), mask["counts"].encode("ascii"))
    from_mask = record.get("box_source", FROM_HEAD) == FROM_MASK
    return Target((left, top, right, bottom), float(record["score"]), rle, from_mask)
