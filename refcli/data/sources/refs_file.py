"""The refs files of the REFER family, pickled or JSON: which sentences go with which annotations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from refcli.data.reading.json_files import convert, read_json
from refcli.data.reading.pickles import read_pickle
from refcli.data.reading.streams import open_binary
from refcli.data.sources.record import RawExpression
from refcli.errors import DataError

TextField = Literal["sent", "raw"]
"""`sent`: lower case, spelling and punctuation normalised; `raw`: as it was typed."""
_JOINT_SPLIT = re.compile(r"test([A-Z]{2,})")
_SNIFFED_BYTES = 1 << 16
_PICKLE_STARTS = (b"\x80", b"(l", b"]")
# What follows the first "ann_id": in JSON a bracket; in a pickle, after storing the key, EMPTY_LIST or MARK.
_ANN_ID_IS_LIST = re.compile(rb"""ann_id(?:"\s*:\s*\[|['\n]*(?:p[0-9]+\n|q.|r.{4}|\x94)?[\](])""", re.DOTALL)


class Ref(NamedTuple):
    """One entry of a refs file: sentences about the same annotations of one image."""

    ref_id: str
    image_id: int
    splits: tuple[str, ...]
    """More than one where the file has a joint value: "testAB" is testA and testB."""
    ann_ids: tuple[int, ...]
    """As in the file: -1 may stand for nothing."""
    has_list: bool
    """Whether the file has a list of annotations, as gRefCOCO does, and not one."""
    no_target: bool | None
    """gRefCOCO's flag, None where there is none."""
    expressions: tuple[RawExpression, ...]
    where: str


class _Sentence(msgspec.Struct):
    sent: str | None = None
    raw: str | None = None
    sent_id: int | str | None = None


class _Ref(msgspec.Struct):
    ref_id: int | str
    image_id: int
    ann_id: int | list[int]
    split: str
    sentences: list[_Sentence]
    no_target: bool | None = None


def read_refs(path: Path, *, text: TextField) -> list[Ref]:
    """Read `refs(<split_by>).p` or `grefs(<split_by>).json`: pickles of Python 2 and 3, and JSON; plain or gzip.

    Args:
        path: the file; its form is told from its first bytes.
        text: which form of the sentences to take. Byte strings of Python 2 arrive as latin-1.

    Raises:
        DataError: not such a file, a sentence lacks the wanted form, or an id occurs twice.
    """
    start = _head(path, 64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        raise DataError(
            "a refs file is a list of refs, and this is a single JSON object",
            where=str(path),
            hint="COCO-style files (finetune_grefcoco_val.json, instances.json) are read with --format coco",
        )
    if start.startswith(b"["):
        rows = read_json(path, list[_Ref])
    else:
        rows = convert(read_pickle(path), list[_Ref], where=str(path))
    return list(_checked(rows, path, text))


def sniff_refs(path: Path) -> Literal["one", "several"] | None:
    """Whether a file looks like refs with one annotation each, with lists of them, or like no refs file at all."""
    try:
        head = _head(path, _SNIFFED_BYTES)
    except (DataError, OSError):
        return None
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if not is_json and not head.startswith(_PICKLE_STARTS):
        return None
    if not all(key in head for key in (b"ref_id", b"ann_id", b"sentences", b"split")):
        return None
    return "several" if b"no_target" in head or _ANN_ID_IS_LIST.search(head) else "one"


def _checked(rows: list[_Ref], path: Path, text: TextField) -> Iterator[Ref]:
    seen: set[str] = set()
    for row in rows:
        where = f"{path.name}: ref {row.ref_id}"
        if not row.split:
            raise DataError("the ref has no split", where=where)
        expressions = tuple(_expressions(row, where, text))
        for expression in expressions:
            if expression.id in seen:
                raise DataError(f"the id {expression.id} (ref_id/sent_id) occurs twice", where=where)
            seen.add(expression.id)
        yield Ref(
            ref_id=str(row.ref_id),
            image_id=row.image_id,
            splits=_splits(row.split),
            ann_ids=tuple(row.ann_id) if isinstance(row.ann_id, list) else (row.ann_id,),
            has_list=isinstance(row.ann_id, list),
            no_target=row.no_target,
            expressions=expressions,
            where=where,
        )


def _expressions(row: _Ref, where: str, text: TextField) -> Iterator[RawExpression]:
    for number, sentence in enumerate(row.sentences):
        words = sentence.sent if text == "sent" else sentence.raw
        if words is None:
            other = "raw" if text == "sent" else "sent"
            raise DataError(
                f"sentence {number} has no {text!r}",
                where=where,
                hint=f"the setting text: {other} takes the other form",
            )
        yield RawExpression(f"{row.ref_id}/{number if sentence.sent_id is None else sentence.sent_id}", words)


def _splits(value: str) -> tuple[str, ...]:
    joint = _JOINT_SPLIT.fullmatch(value)
    return tuple(f"test{letter}" for letter in joint[1]) if joint else (value,)


def _head(path: Path, size: int) -> bytes:
    with open_binary(path) as stream:
        return stream.read(size)
