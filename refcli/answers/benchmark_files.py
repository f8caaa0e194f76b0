"""Prediction files of benchmarks: a JSON list or JSON lines, with the benchmark's own ids of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from refcli.answers.jsonl import mask_from_json
from refcli.answers.keys import comparable_key
from refcli.answers.stated import NOT_A_PREDICTION, AnswerReading, StatedAnswer
from refcli.answers.text_lines import NO_SCORES, parse_failure
from refcli.contracts.example import RLE
from refcli.data.reading.json_files import convert, parse_json
from refcli.data.reading.pickles import read_object_array
from refcli.data.reading.streams import foreign_encoding, read_byte_lines, read_bytes, text_start
from refcli.data.sources.coco.instances import xywh_to_xyxy
from refcli.data.sources.known_keys import KnownKeys, WholeFileError, excerpt
from refcli.data.sources.rows import MAX_LINE_BYTES, NUMBERS_OF_A_BOX
from refcli.errors import DataError
from refcli.geometry.masks import check_run_lengths, mask_box, runs_to_rle
from refcli.text.vlm_text import TEXT_FORMATS, AnswerTextError, Box, stated_boxes

MAX_LIST_BYTES = 1 << 30
"""The largest file that is one JSON list."""
MOST_TARGETS = 10_000
"""Boxes of one sample."""
NUMBERS_OF_A_POINT = 2
UNUSABLE_ENTRY = "an entry about it cannot be used"
"""The error of a sample of COCO results."""
_Numbers: TypeAlias = list[float]
_Id: TypeAlias = int | str
_Row = TypeVar("_Row", bound=msgspec.Struct)


class _RefL4(msgspec.Struct):
    id: _Id
    pred_bbox: _Numbers
    format: Literal["xyxy", "xywh"]


class _GSEval(msgspec.Struct):
    idx: _Id
    box: _Numbers | None = None
    predicted_box: _Numbers | None = None


class _HumanRef(msgspec.Struct):
    id: _Id
    extracted_predictions: list[_Numbers]


class _FineCops(msgspec.Struct):
    image_id: _Id
    text: str
    scores_prob_average: _Numbers | None = None


class _FineCopsArray(msgspec.Struct):
    img_id: _Id
    bboxes: list[_Numbers]
    scores: _Numbers


class _Result(msgspec.Struct):
    image_id: _Id
    category_id: _Id | None = None
    bbox: Any = None
    score: Any = None
    segmentation: Any = None


REF_L4 = KnownKeys("entry", frozenset(_RefL4.__struct_fields__), frozenset({"gt_bbox", "caption", "file_name"}))
GSEVAL = KnownKeys(
    "line",
    frozenset(_GSEval.__struct_fields__),
    frozenset({"image_path", "class_id", "label", "caption"}),
    has_box=True,
    has_corners=True,
)
HUMANREF = KnownKeys(
    "line",
    frozenset(_HumanRef.__struct_fields__),
    frozenset({"image_name", "domain", "sub_domain", "referring", "answer_boxes", "candidate_boxes", "raw_response"}),
    has_corners=True,
)
FINECOPS = KnownKeys(
    "line", frozenset(_FineCops.__struct_fields__), frozenset({"expression", "question_id"}), has_corners=True
)
FINECOPS_ARRAY = KnownKeys("entry", frozenset(_FineCopsArray.__struct_fields__), has_box=True, has_corners=True)
RESULT = KnownKeys("entry", frozenset(_Result.__struct_fields__), frozenset({"id", "area", "iscrowd"}), has_box=True)


def read_ref_l4(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of a Ref-L4 list of `{"id", "pred_bbox", "format": "xyxy"|"xywh"}`."""

    def answer(row: _RefL4, number: int, num_bytes: int) -> StatedAnswer:
        box = _box(row.pred_bbox, "pred_bbox")
        return StatedAnswer(
            number, comparable_key(row.id), num_bytes, (xywh_to_xyxy(box) if row.format == "xywh" else box,)
        )

    reading.notes.append(NO_SCORES)
    return _answers(reading, _RefL4, REF_L4, answer)


def read_gseval(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of GSEval lines `{"idx", "box"}` or `{"idx", "predicted_box"}`; null or [] is no target."""

    def answer(row: _GSEval, number: int, num_bytes: int) -> StatedAnswer:
        given = [box for box in (row.box, row.predicted_box) if box]
        if len(given) > 1:
            raise DataError("box and predicted_box are both given")
        return StatedAnswer(number, comparable_key(row.idx), num_bytes, tuple(_box(box, "the box") for box in given))

    reading.notes.append(NO_SCORES)
    return _answers(reading, _GSEval, GSEVAL, answer, one_of=("box", "predicted_box"))


def read_humanref(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of HumanRef lines `{"id", "extracted_predictions"}`; [] and [[]] are rejections.

    Two numbers are a point.
    """

    def answer(row: _HumanRef, number: int, num_bytes: int) -> StatedAnswer:
        given = [] if row.extracted_predictions == [[]] else row.extracted_predictions
        points = [one * 2 if len(one) == NUMBERS_OF_A_POINT else one for one in given]
        boxes = tuple(_box(one, "a prediction") for one in points)
        return StatedAnswer(number, comparable_key(row.id), num_bytes, boxes)

    reading.notes.append(NO_SCORES)
    return _answers(reading, _HumanRef, HUMANREF, answer)


def read_finecops(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of FineCops-Ref lines `{"image_id", "text", "scores_prob_average"}`, a score for each box."""
    declared = TEXT_FORMATS["cogvlm"]

    def answer(row: _FineCops, number: int, num_bytes: int) -> StatedAnswer:
        try:
            boxes = stated_boxes(row.text, declared)
        except AnswerTextError as error:
            failure = parse_failure(error, row.text)
            return StatedAnswer(number, comparable_key(row.image_id), num_bytes, failure=failure)
        scores = row.scores_prob_average
        if boxes and scores is not None and len(scores) != len(boxes):
            raise DataError(f"there are {len(boxes)} boxes and {len(scores)} scores")
        known = tuple(scores) if boxes and scores is not None else None
        if not all(map(math.isfinite, known or ())):
            raise DataError(f"a score is not finite: {excerpt(scores)}")
        return StatedAnswer(number, comparable_key(row.image_id), num_bytes, boxes, known)

    return _answers(reading, _FineCops, FINECOPS, answer)


def read_finecops_array(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of FineCops-Ref's `.npy` list of `{"img_id", "bboxes", "scores"}`, corners in pixels.

    Nothing that the pickle inside names is imported or called.
    """
    records = convert(read_object_array(reading.path), list[Any], where=str(reading.path))
    for number, record in enumerate(records, 1):
        where = f"entry {number}"
        try:
            known = convert(record, dict[str, Any], where=where)
            reading.keys.check(FINECOPS_ARRAY, known, where)
            row = convert(known, _FineCopsArray, where=where)
            if len(row.scores) != len(row.bboxes):
                raise DataError(f"there are {len(row.bboxes)} boxes and {len(row.scores)} scores")
            boxes = tuple(_box(box, "a box") for box in row.bboxes)
        except WholeFileError:
            raise
        except DataError as error:
            reading.reject(NOT_A_PREDICTION, number, error.message)
        else:
            yield StatedAnswer(number, comparable_key(row.img_id), 0, boxes, tuple(row.scores))


def read_results(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of COCO results, whose `image_id` is that of the sample."""
    return _grouped(reading, lambda row: comparable_key(row.image_id))


def read_category_results(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answers of COCO results, whose `category_id` is the description that `image_id` is asked for."""

    def key(row: _Result) -> str:
        if row.category_id is None:
            raise DataError("there is no category_id")
        return comparable_key(row.image_id, row.category_id)

    return _grouped(reading, key)


def _grouped(reading: AnswerReading, key_of: Callable[[_Result], str]) -> Iterator[StatedAnswer]:
    """The entries of each sample as one answer, with their boxes in the order of the file.

    A sample with an entry that cannot be used has no answer, since the others are not all that was answered.
    """
    groups: dict[str, list[tuple[int, int, _Detection | None]]] = {}
    categories: set[_Id | None] = set()
    num_without_score = 0
    for number, row, num_bytes in _rows(reading, _Result, RESULT):
        detection = None
        try:
            group = groups.setdefault(key_of(row), [])
            if len(group) >= MOST_TARGETS:
                raise DataError(f"the sample has more than {MOST_TARGETS:,} entries")
            group.append((number, num_bytes, None))
            detection = _Detection.of(row)
            group[-1] = (number, num_bytes, detection)
        except DataError as error:
            reading.reject(NOT_A_PREDICTION, number, error.message)
            continue
        categories.add(row.category_id)
        num_without_score += row.score is None
    if num_without_score:
        reading.notes.append(f"{num_without_score:,} boxes have no score, which counts as 1")
    if len(categories) > 1 and not any("/" in key for key in groups):
        reading.notes.append(
            f"the entries have {len(categories):,} different category_id, which are not read; "
            "--answers-format d-cube reads them"
        )
    for key, group in groups.items():
        found = [detection for *_, detection in group if detection is not None]
        number, total = group[0][0], sum(num_bytes for _, num_bytes, _ in group)
        if len(found) < len(group):
            yield StatedAnswer(number, key, total, error=UNUSABLE_ENTRY)
            continue
        yield StatedAnswer(
            number,
            key,
            total,
            tuple(one.box for one in found),
            tuple(one.score for one in found),
            tuple(one.mask for one in found),
            tuple(one.is_from_mask for one in found),
        )


class _Detection(msgspec.Struct, frozen=True):
    """One entry: a box, a mask or both."""

    box: Box
    score: float
    mask: RLE | None
    is_from_mask: bool

    @classmethod
    def of(cls, row: _Result) -> _Detection:
        """The detection of an entry.

        Raises:
            DataError: it has neither a box nor a mask, or one that cannot be read; or the score is not a finite number.
        """
        mask = _mask(row.segmentation) if row.segmentation else None
        numbers = convert(row.bbox or [], _Numbers, where="bbox")
        score = 1.0 if row.score is None else convert(row.score, float, where="score")
        if not math.isfinite(score):
            raise DataError(f"the score is {score}")
        if numbers or mask is None:
            return cls(xywh_to_xyxy(_box(numbers, "bbox")), score, mask, is_from_mask=False)
        return cls(mask_box(mask), score, mask, is_from_mask=True)


def _mask(segmentation: object) -> RLE:
    try:
        if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
            height, width = convert(segmentation.get("size"), tuple[int, int], where="segmentation")
            return runs_to_rle(segmentation["counts"], height, width)
        mask = mask_from_json(segmentation)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"the segmentation is not run lengths: {error}") from error
    check_run_lengths(mask)
    return mask


def _answers(
    reading: AnswerReading,
    kind: type[_Row],
    keys: KnownKeys,
    answer: Callable[[_Row, int, int], StatedAnswer],
    *,
    one_of: Sequence[str] = (),
) -> Iterator[StatedAnswer]:
    """The answer of every usable row."""
    for number, row, num_bytes in _rows(reading, kind, keys, one_of):
        try:
            yield answer(row, number, num_bytes)
        except DataError as error:
            reading.reject(NOT_A_PREDICTION, number, error.message)


def _rows(
    reading: AnswerReading, kind: type[_Row], keys: KnownKeys, one_of: Sequence[str] = ()
) -> Iterator[tuple[int, _Row, int]]:
    """(number, row, bytes) of every usable row of a file that is one JSON list or has a JSON object per line.

    Args:
        reading: the file.
        kind: the shape of a row.
        keys: the known keys of a row.
        one_of: keys of which a row needs at least one.
    """
    for number, text in _texts(reading):
        where = f"{keys.record} {number}"
        try:
            record = parse_json(text, dict[str, Any], where=where)
            reading.keys.check(keys, record, where)
            if one_of and not any(key in record for key in one_of):
                raise DataError(f"there is no {' or '.join(one_of)}")
            row = convert({key: record[key] for key in keys.read & record.keys()}, kind, where=where)
        except WholeFileError:
            raise
        except DataError as error:
            reading.reject(NOT_A_PREDICTION, number, error.message)
        else:
            yield number, row, len(bytes(text))


def _texts(reading: AnswerReading) -> Iterator[tuple[int, bytes | msgspec.Raw]]:
    start = text_start(reading.path)
    if not start:
        raise DataError("it is empty")
    if start.startswith(b"["):
        content = read_bytes(reading.path, max_bytes=MAX_LIST_BYTES)
        yield from enumerate(parse_json(content, list[msgspec.Raw], where=str(reading.path)), 1)
        return
    for number, line in read_byte_lines(reading.path, max_line_bytes=MAX_LINE_BYTES):
        if number == 1 and (encoding := foreign_encoding(line)):
            raise DataError(f"it is {encoding}", hint="write it in UTF-8")
        yield number, line


def _box(numbers: Sequence[float], what: str) -> Box:
    if len(numbers) != NUMBERS_OF_A_BOX:
        raise DataError(f"{what} has {len(numbers)} numbers: {excerpt(list(numbers))}")
    x1, y1, x2, y2 = (number if math.isfinite(number) else math.nan for number in numbers)
    return x1, y1, x2, y2
