"""Text answers of vision-language models as JSON lines: `{"id", "text", "width"?, "height"?, "input_width"?, ...}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from refcli.answers.stated import NOT_A_PREDICTION, AnswerReading, StatedAnswer
from refcli.data.reading.json_files import convert, parse_json
from refcli.data.reading.streams import foreign_encoding, read_byte_lines
from refcli.data.sources.known_keys import KnownKeys, WholeFileError
from refcli.data.sources.rows import MAX_LINE_BYTES, valid_side
from refcli.errors import DataError
from refcli.text.vlm_text import TEXT_FORMATS, AnswerTextError, Box, stated_boxes

LONGEST_QUOTED = 60
"""Characters of a text that a parse failure quotes."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str | int
    text: Any = None
    error: Any = None
    width: int | None = None
    height: int | None = None
    input_width: int | None = None
    input_height: int | None = None
    image: msgspec.Raw = msgspec.Raw()
    expression: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()


_UNUSED = frozenset({"image", "expression", "prompt", "model"})
LINE_KEYS = KnownKeys("line", frozenset(_Line.__struct_fields__) - _UNUSED, _UNUSED, has_corners=True)
_decode = msgspec.json.Decoder(_Line, strict=False).decode


def read_text_lines(reading: AnswerReading) -> Iterator[StatedAnswer]:
    """Yield the answer of every line; a text that cannot be parsed is a failure, which is an answer.

    The text is read in the one format that is declared. A line with an `error` has no answer. Boxes have no scores.

    Raises:
        DataError: the file is not UTF-8 text, or a key declares something that is not read.
    """
    declared = TEXT_FORMATS[reading.notation.name]
    has_boxes = False
    for number, line in read_byte_lines(reading.path, max_line_bytes=MAX_LINE_BYTES):
        if number == 1 and (encoding := foreign_encoding(line)):
            raise DataError(f"it is {encoding}", hint="write it in UTF-8")
        try:
            row = _row(line, number, reading)
        except WholeFileError:
            raise
        except DataError as error:
            reading.reject(NOT_A_PREDICTION, number, error.message)
            continue
        boxes: tuple[Box, ...] = ()
        failure = None
        text = row.text if type(row.text) is str else msgspec.json.encode(row.text).decode()
        if not row.error:
            try:
                boxes = stated_boxes(text, declared)
            except AnswerTextError as error:
                failure = parse_failure(error, text)
        has_boxes = has_boxes or bool(boxes)
        yield StatedAnswer(
            number,
            str(row.id),
            len(line),
            boxes,
            failure=failure,
            error=str(row.error) if row.error else None,
            sizes=(_side(row.width), _side(row.height), _side(row.input_width), _side(row.input_height)),
        )
    if has_boxes:
        reading.notes.append(NO_SCORES)


NO_SCORES = "the answers have no scores: every box has score 1, and boxes rank in the order of their answer"
"""The note about a file without scores."""


def parse_failure(error: AnswerTextError, text: str) -> str:
    """The reason of a parse failure, with the end of the text, which holds the answer."""
    shown = text.strip()
    shown = shown if len(shown) <= LONGEST_QUOTED else "..." + shown[-LONGEST_QUOTED:]
    return f"{error} in {shown!r}" if shown else str(error)


def _row(line: bytes, number: int, reading: AnswerReading) -> _Line:
    try:
        row = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        where = f"line {number}"
        record = parse_json(line, dict[str, Any], where=where)
        reading.keys.check(LINE_KEYS, record, where)
        row = convert({key: record[key] for key in LINE_KEYS.read & record.keys()}, _Line, where=where)
    if row.text is None and not row.error:
        raise DataError("the text is null, and no error is given")
    return row


def _side(value: int | None) -> int:
    return valid_side(value) or 0
