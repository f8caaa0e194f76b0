"""MMR: several questions per image, each with any number of objects and parts as its answer (Jang et al., ICLR 2025).

A record is `{"file_name", "height", "width", "image_id", "questions": [...], "answers": [[annotation, ...], ...]}` with
one list of annotations per question; an annotation has a `segmentation` (run lengths). The box of a region is the
extent of its mask: the form of `bbox` is not documented, so it is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import named_image
from refcli.data.sources.json_records import RowPlace, read_rows
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row, first_record_has, valid_side
from refcli.errors import DataError


class _Answer(msgspec.Struct):
    segmentation: msgspec.Raw


class _Row(msgspec.Struct):
    file_name: str
    height: int
    width: int
    questions: list[str]
    answers: list[list[msgspec.Raw]]


_KEYS = KnownKeys(
    "record",
    frozenset(_Row.__struct_fields__),
    frozenset({"image_id", "annotations", "text_answers", "raw_answers", "coco_url", "neg_category_ids",
               "not_exhaustive_category_ids"}),
)  # fmt: skip
_ANSWER_KEYS = KnownKeys(
    "answer",
    frozenset(_Answer.__struct_fields__),
    frozenset({"id", "image_id", "bbox", "area", "iscrowd", "category_id", "category_name", "sorted_category_id"}),
    has_box=True,
)


def read_mmr(files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems) -> Iterator[RawRecord]:
    """Yield one record per question; see `Reader`. `files`: split -> file.

    A question with no answer, or with one that has no mask, is left out (`question_without_answer`, `broken_answer`).
    """
    log = KeyLog(", ".join(path.name for path in files.values()), problems)
    rejected = Rejections(problems, "broken_answer")

    def records(row: _Row, place: RowPlace) -> list[RawRecord]:
        if len(row.questions) != len(row.answers):
            raise DataError(f"it has {len(row.questions)} questions and {len(row.answers)} answers", where=place.where)
        image = named_image(
            row.file_name, dataset=dataset, width=valid_side(row.width), height=valid_side(row.height), origin="coco"
        )
        found = []
        for number, (question, answer) in enumerate(zip(row.questions, row.answers, strict=True)):
            where = f"{place.where}, question {number + 1}"
            if not answer:
                problems.add("question_without_answer", where, question)
                continue
            try:
                regions = _regions(answer, where, log)
            except DataError as error:
                rejected.add(error, where)
                continue
            expression = RawExpression(f"{place.number}/{number}", question)
            found.append(RawRecord(place.split, image, (expression,), regions, where))
        return found

    yield from read_rows(files, _Row, _KEYS, records, problems)
    log.finish()


def _regions(answer: Sequence[msgspec.Raw], where: str, log: KeyLog) -> tuple[RawRegion, ...]:
    rows = [
        decode_row(raw, _Answer, where=where, problems=log.problems, needed=(), keys=(_ANSWER_KEYS, log))
        for raw in answer
    ]
    if any(bytes(row.segmentation) == b"null" for row in rows):
        raise DataError("one of its answers has no segmentation", where=where)
    return tuple(RawRegion(None, bytes(row.segmentation)) for row in rows)


def sniff_mmr(path: Path) -> bool:
    """Whether a file starts with a record of MMR, whose answers may be far behind."""
    return first_record_has(path, b"file_name", b"questions", b"annotations")


SOURCE = Source(
    description="MMR: JSON list with questions and, for each of them, answers with segmentation",
    read=read_mmr,
    settings=Settings,
    files={"*": ()},
    sniff=sniff_mmr,
)
