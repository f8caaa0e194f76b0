"""The refs files of the REFER family, pickled or JSON: which sentences go with which annotations."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from refcli.data.reading.json_files import convert, read_json
from refcli.data.reading.pickles import read_pickle
from refcli.data.reading.streams import open_binary
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression
from refcli.data.sources.rows import Id, Rejections, Row, convert_row, decode_row, identity
from refcli.errors import DataError

TextField = Literal["sent", "raw"]
"""`sent`: lower case, spelling and punctuation normalised; `raw`: as it was typed."""
_JOINT_SPLIT = re.compile(r"test([A-Z]{2,})")
_SNIFFED_BYTES = 1 << 16
_PICKLE_STARTS = (b"\x80", b"(l", b"]")
ZERO = "zero"
"""`source` of Ref-ZOM's refs that are about nothing."""
_REF = KnownKeys(
    "ref",
    frozenset({"ref_id", "image_id", "ann_id", "split", "sentences", "no_target", "exist", "source"}),
    frozenset({"sent_ids", "file_name", "category_id", "category", "image_info", "att_wds"}),
)
_SENTENCE = KnownKeys("sentence", frozenset({"sent", "raw", "sent_id", "exist"}), frozenset({"tokens"}))
# What follows the first "ann_id": in JSON a bracket; in a pickle, after storing the key, EMPTY_LIST or MARK.
_ANN_ID_IS_LIST = re.compile(rb"""ann_id(?:"\s*:\s*\[|['\n]*(?:p[0-9]+\n|q.|r.{4}|\x94)?[\](])""", re.DOTALL)


class Ref(NamedTuple):
    """One entry of a refs file: sentences about the same annotations of one image."""

    ref_id: str
    image_id: Id
    splits: tuple[str, ...]
    """More than one where the file has a joint value: "testAB" is testA and testB."""
    ann_ids: tuple[Id, ...]
    """As in the file: -1 may stand for nothing."""
    has_list: bool
    """Whether the file has a list of annotations, as gRefCOCO does, and not one."""
    no_target: bool | None
    """gRefCOCO's flag, None where there is none."""
    expressions: tuple[RawExpression, ...]
    where: str
    absent: tuple[RawExpression, ...] = ()
    """Sentences that are about nothing in the image, whatever the annotations: `exist` is false (R-RefCOCO)."""


_RawId = int | str | float


class _Sentence(msgspec.Struct):
    sent: str | None = None
    raw: str | None = None
    sent_id: int | str | None = None
    exist: bool | None = None


class _Ref(msgspec.Struct):
    ref_id: int | str
    image_id: _RawId
    ann_id: _RawId | list[_RawId]
    split: str
    sentences: list[object]
    no_target: bool | None = None
    exist: bool | None = None
    source: str | None = None


def read_refs(path: Path, *, text: TextField, problems: Problems) -> list[Ref]:
    """Read `refs(<split_by>).p` or `grefs(<split_by>).json`: pickles of Python 2 and 3, and JSON; plain or gzip.

    Args:
        path: the file; its form is told from its first bytes.
        text: which form of the sentences to take. Byte strings of Python 2 arrive as latin-1.
        problems: refs and sentences that are left out, `broken_ref` and `broken_sentence`, and `unused_key`.

    Raises:
        DataError: not such a file, no ref can be used, no sentence has the wanted form, or an id occurs twice.
    """
    start = _head(path, 64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        raise DataError(
            "a refs file is a list of refs, and this is a single JSON object",
            where=str(path),
            hint="COCO-style files (finetune_grefcoco_val.json, instances.json) are read with --format coco",
        )
    if start.startswith(b"["):
        rows: list[object] = list(read_json(path, list[msgspec.Raw]))
    else:
        rows = convert(read_pickle(path), list[object], where=str(path))
    return _Reading(path, text, problems).refs(rows)


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


class _Reading:
    """One file while it is read."""

    def __init__(self, path: Path, text: TextField, problems: Problems) -> None:
        self._path = path
        self._text = text
        self._problems = problems
        self._keys = KeyLog(path.name, problems)
        self._rejected_sentences = Rejections(problems, "broken_sentence")

    def refs(self, rows: list[object]) -> list[Ref]:
        refs: list[Ref] = []
        rejected = Rejections(self._problems, "broken_ref")
        seen: set[str] = set()
        for index, row in enumerate(rows):
            where = f"{self._path.name}: refs[{index}]"
            try:
                ref = self._ref(self._decoded(row, _Ref, where, _REF))
            except DataError as error:
                rejected.add(error, where)
                continue
            for expression in (*ref.expressions, *ref.absent):
                if expression.id in seen:
                    raise DataError(f"the id {expression.id} (ref_id/sent_id) occurs twice", where=ref.where)
                seen.add(expression.id)
            refs.append(ref)
        self._keys.finish()
        if not refs:
            rejected.refuse_if_any()
        if not seen:
            self._rejected_sentences.refuse_if_any()
        return refs

    def _ref(self, row: _Ref) -> Ref:
        where = f"{self._path.name}: ref {row.ref_id}"
        if not row.split:
            raise DataError("the ref has no split", where=where)
        sentences = list(self._sentences(row, where))
        is_absent = row.exist is False or row.source == ZERO
        present = tuple(expression for expression, exists in sentences if exists and not is_absent)
        absent = tuple(expression for expression, exists in sentences if is_absent or not exists)
        given = row.ann_id if isinstance(row.ann_id, list) else [row.ann_id]
        return Ref(
            ref_id=str(row.ref_id),
            image_id=identity(row.image_id),
            splits=_splits(row.split),
            ann_ids=tuple(map(identity, given)),
            has_list=isinstance(row.ann_id, list),
            no_target=row.no_target,
            expressions=present,
            where=where,
            absent=absent,
        )

    def _sentences(self, row: _Ref, where: str) -> Iterator[tuple[RawExpression, bool]]:
        """The expressions of a ref, and whether each means anything."""
        for number, one in enumerate(row.sentences):
            try:
                sentence = self._decoded(one, _Sentence, f"{where}, sentence {number}", _SENTENCE, needed={"exist"})
            except DataError as error:
                self._rejected_sentences.add(error, f"{where}, sentence {number}")
                continue
            words = sentence.sent if self._text == "sent" else sentence.raw
            if words is None:
                self._rejected_sentences.add(self._no_text(sentence, number, where), f"{where}, sentence {number}")
                continue
            identity_of = number if sentence.sent_id is None else sentence.sent_id
            yield RawExpression(f"{row.ref_id}/{identity_of}", words), sentence.exist is not False

    def _no_text(self, sentence: _Sentence, number: int, where: str) -> DataError:
        """Why a sentence that lacks the wanted form cannot be used."""
        if sentence.sent is None and sentence.raw is None:
            return DataError("there is no text", where=where)
        other = "raw" if self._text == "sent" else "sent"
        return DataError(
            f"sentence {number} has no {self._text!r}",
            where=where,
            hint=f"--set text={other} takes the other form",
        )

    def _decoded(
        self,
        row: object,
        kind: type[Row],
        where: str,
        known: KnownKeys,
        needed: Collection[str] = ("no_target", "exist"),
    ) -> Row:
        keys = (known, self._keys)
        if isinstance(row, msgspec.Raw):
            return decode_row(row, kind, where=where, problems=self._problems, needed=needed, keys=keys)
        return convert_row(row, kind, where=where, problems=self._problems, needed=needed, keys=keys)


def _splits(value: str) -> tuple[str, ...]:
    joint = _JOINT_SPLIT.fullmatch(value)
    return tuple(f"test{letter}" for letter in joint[1]) if joint else (value,)


def _head(path: Path, size: int) -> bytes:
    with open_binary(path) as stream:
        return stream.read(size)
