"""Prediction lines: answers as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from refcli.contracts.example import RLE
from refcli.contracts.prediction import PREDICTION_SCHEMA, Answer, FramedTarget, NoTargetSource, Target
from refcli.errors import DataError

BOX_DECIMALS = 2
FRAME_DECIMALS = 3
"""Decimals of boxes in the model frame, whose pixels are larger than those of most images."""
SCORE_DECIMALS = 5
FROM_HEAD, FROM_MASK = "head", "mask"
"""Origin of a box: the head's output, or the tight box of the mask."""
MAX_SIDE = 1 << 24
MAX_PIXELS = 1 << 29
"""Maximum area of an image or a mask; a mask is unpacked to a byte per pixel."""
MAX_FRAME_PIXELS = 1 << 22
"""Maximum area of a model's letterbox."""


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """The record of schema `refcli.prediction/1`, `schema` first.

    Boxes are absolute pixels of the original image (EXIF orientation applied), xyxy, half-open, to 0.01 pixel; masks
    are compressed COCO run lengths with `counts` as text. With "no target" there are also `candidates` (the targets
    proposed before that decision) and `no_target_source`. `mask` appears if the system draws one of everything that is
    referred to beside the targets' own, `unknown_words` and `unread_text` if the model could not read the whole
    expression, `parse_failure` if the answer's text could not be parsed (`error` says why). The `frame` of a target is
    the same target in pixels of the model's letterbox, including the padding. `evaluate` measures the numbers written
    here.
    """
    record: dict[str, Any] = {
        "schema": PREDICTION_SCHEMA,
        "id": answer.id,
        "image": answer.image,
        "expression": answer.expression,
        "width": answer.width,
        "height": answer.height,
        "targets": [_target_to_json(target) for target in answer.targets],
        "no_target": answer.no_target,
        "no_target_score": None if answer.no_target_score is None else round(answer.no_target_score, SCORE_DECIMALS),
    }
    if answer.mask is not None:
        record["mask"] = mask_to_json(answer.mask)
    if answer.candidates is not None:
        record["candidates"] = [_target_to_json(target) for target in answer.candidates]
    if answer.no_target_source is not None:
        record["no_target_source"] = answer.no_target_source
    if answer.unknown_words:
        record["unknown_words"] = list(answer.unknown_words)
    if answer.unread_text:
        record["unread_text"] = answer.unread_text
    if answer.parse_failure:
        record["parse_failure"] = True
    return record | {"weights": answer.weights, "error": answer.error}


def answer_line(answer: Answer) -> str:
    """The record as one line of valid JSON in which every unprintable character is escaped.

    Names therefore cannot control a terminal or break the line, and halves of surrogate pairs (a file name that is not
    UTF-8) are read as they were written.
    """
    text = json.dumps(answer_to_json(answer), ensure_ascii=False)
    return (
        text if text.isprintable() else "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    )


def _escape(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def as_written(answer: Answer) -> Answer:
    """The answer with the precision of its line."""
    return answer_from_json(answer_to_json(answer))


def answer_from_json(record: Mapping[str, Any]) -> Answer:
    """The answer in a record.

    A size that is missing, null or not positive is unknown: 0. `no_target` may be null in records of systems that do
    not judge existence: the answer is then "no target" if it has no targets. Halves of surrogate pairs in texts become
    U+FFFD.

    Raises:
        DataError: another schema, or a missing or malformed field.
    """
    if record.get("schema") != PREDICTION_SCHEMA:
        raise DataError(
            f"the record is not of schema {PREDICTION_SCHEMA}",
            where="schema",
            hint=f"found {str(record.get('schema'))[:80]!r}",
        )
    try:
        targets = tuple(_target_from_json(target) for target in _kind_of(record, "targets", list))
        states_none = _kind_of(record, "no_target", bool, type(None))
        candidates = _kind_of(record, "candidates", list, type(None)) if "candidates" in record else None
        return Answer(
            id=_text(_kind_of(record, "id", str, int)),
            image=_text(_kind_of(record, "image", str, int, float, type(None))),
            expression=_text(_kind_of(record, "expression", str, int, float, type(None))),
            width=_side(record, "width"),
            height=_side(record, "height"),
            targets=targets,
            no_target=not targets if states_none is None else states_none,
            no_target_score=None if record["no_target_score"] is None else _number(record["no_target_score"]),
            weights=_text(_kind_of(record, "weights", str, int, float, type(None))),
            error=None if _kind_of(record, "error", str, type(None)) is None else _text(record["error"]),
            candidates=None if candidates is None else tuple(_target_from_json(target) for target in candidates),
            no_target_source="mask" if states_none is None and not targets else _source(record),
            unknown_words=tuple(map(_text, _kind_of({"unknown_words": [], **record}, "unknown_words", list))),
            unread_text=_text(_kind_of({"unread_text": "", **record}, "unread_text", str)),
            parse_failure=_parse_failure(record),
            mask=None if record.get("mask") is None else mask_from_json(record["mask"]),
        )
    except KeyError as error:
        raise DataError(f"the prediction record has no {error.args[0]!r}", where=_place(record)) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"the prediction record is malformed: {error}", where=_place(record)) from error


def _place(record: Mapping[str, Any]) -> str:
    return _text(record.get("id"))[:200]


def _text(value: object) -> str:
    """A value as text that every encoding of Unicode can represent."""
    return str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _kind_of(record: Mapping[str, Any], key: str, *kinds: type) -> Any:  # noqa: ANN401 - one of `kinds`
    """A field of a record, of one of these types: the text "false" is not a boolean, and a boolean is not a number."""
    value = record[key]
    if type(value) not in kinds:
        raise TypeError(f"{key} is {str(value)[:80]!r}")
    return value


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {str(value)[:80]!r}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{str(value)[:80]!r} is not a number")
    return float(value)


def _side(record: Mapping[str, Any], key: str) -> int:
    """Width or height in pixels; 0: unknown."""
    value = record.get(key)
    if value is None:
        return 0
    number = _number(value)
    if number != int(number) or number > MAX_SIDE:
        raise ValueError(f"{key} is {number:g}")
    return max(int(number), 0)


def _source(record: Mapping[str, Any]) -> NoTargetSource | None:
    value = record.get("no_target_source")
    if value is not None and value not in get_args(NoTargetSource):
        raise ValueError(f"no_target_source is {str(value)[:80]!r}")
    return value


def _parse_failure(record: Mapping[str, Any]) -> bool:
    failed: bool = _kind_of({"parse_failure": False, **record}, "parse_failure", bool)
    if failed and record["error"] is None:
        raise ValueError("parse_failure is true, but error is null")
    return failed


def _target_to_json(target: Target) -> dict[str, Any]:
    record = {
        "box": _box_to_json(target.box_xyxy, BOX_DECIMALS),
        "score": round(target.score, SCORE_DECIMALS),
        "mask": mask_to_json(target.mask) if target.mask else None,
        "box_source": FROM_MASK if target.box_is_from_mask else FROM_HEAD,
    }
    if target.frame is not None:
        box = target.frame.box_xyxy
        record["frame"] = {
            "size": list(target.frame.size),
            "box": None if box is None else _box_to_json(box, FRAME_DECIMALS),
            "mask": mask_to_json(target.frame.mask) if target.frame.mask else None,
        }
    return record


def _box_to_json(box_xyxy: tuple[float, float, float, float], decimals: int) -> list[float]:
    return [round(side, decimals) for side in box_xyxy]


def mask_to_json(mask: RLE) -> dict[str, Any]:
    """A mask as compressed COCO run lengths, with `counts` as text."""
    return {"size": list(mask.size), "counts": mask.counts.decode("ascii")}


def _target_from_json(record: object) -> Target:
    record = _object(record, "a target")
    from_mask = record.get("box_source", FROM_HEAD) == FROM_MASK
    frame = record.get("frame")
    return Target(
        _box_from_json(record["box"]),
        _number(record["score"]),
        None if record["mask"] is None else mask_from_json(record["mask"]),
        from_mask,
        None if frame is None else _frame_from_json(frame),
    )


def _frame_from_json(record: object) -> FramedTarget:
    record = _object(record, "a frame")
    box, mask = record["box"], record["mask"]
    return FramedTarget(
        _size_from_json(record["size"], MAX_FRAME_PIXELS),
        None if box is None else _box_from_json(box),
        None if mask is None else mask_from_json(mask, MAX_FRAME_PIXELS),
    )


def _box_from_json(values: object) -> tuple[float, float, float, float]:
    if not isinstance(values, list):
        raise TypeError(f"a box is {str(values)[:80]!r}")
    if len(values) != len(("left", "top", "right", "bottom")):
        raise ValueError(f"a box has {len(values)} numbers")
    left, top, right, bottom = map(_number, values)
    return left, top, right, bottom


def mask_from_json(record: object, max_pixels: int = MAX_PIXELS) -> RLE:
    record = _object(record, "a mask")
    counts = record["counts"]
    if not isinstance(counts, str):
        raise TypeError("the counts of a mask must be text: compressed COCO run lengths")
    return RLE(_size_from_json(record["size"], max_pixels), counts.encode("ascii"))


def _size_from_json(values: object, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels."""
    if not isinstance(values, list) or not all(type(side) is int and 0 < side <= MAX_SIDE for side in values):
        raise ValueError(f"a size is {str(values)[:80]!r}")
    height, width = values
    if height * width > max_pixels:
        raise ValueError(f"{height} x {width} pixels are too many")
    return height, width
