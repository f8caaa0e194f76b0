"""The REFER layout of RefCOCO, RefCOCO+, RefCOCOg and refclef: `refs(<split_by>).p` beside `instances.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import convert, read_json
from refcli.data.reading.pickles import read_pickle
from refcli.data.reading.streams import open_binary
from refcli.data.sources.coco.instances import (
    CocoAnnotation,
    CocoImage,
    Instances,
    coco_image,
    coco_region,
    read_instances,
)
from refcli.data.sources.image_names import coco_id, own_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.referit import saiapr_image
from refcli.data.sources.rows import Id, Rejections, Row, convert_row, decode_row, identity, number_of
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


INSTANCES_NAMES = ("instances.json", "instances.json.gz", "instances_train2014.json", "instances_train2014.json.gz")
SPLIT_AUTHORS = ("unc", "umd", "google", "berkeley")
_ReferredAnnotations = Callable[[Ref], tuple[Id, ...]]


class ReferSettings(Settings):
    """Choices of the REFER reader."""

    text: TextField = "sent"
    """`sent`: the cleaned sentence, which the literature uses; `raw`: as it was typed."""
    images: Literal["auto", "coco", "saiapr"] = "auto"
    """What the image ids number: COCO's photographs or SAIAPR's (refclef). `auto`: COCO's where `instances.json` has
    the id in the name COCO_train2014_<id>.jpg or in COCO's own address, else files are looked for by their names."""


def read_refer(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per ref and split it is in; see `Reader`.

    Args:
        files: `refs` and `instances`; the latter may be COCO's own file for the whole of train2014.
        settings: a `ReferSettings`.
        dataset: for images and annotations that are not COCO's.
        problems: see `referred_records`.
    """
    assert isinstance(settings, ReferSettings)
    return referred_records(files, settings, _the_annotation, dataset=dataset, problems=problems)


def referred_records(
    files: Mapping[str, Path],
    settings: ReferSettings,
    annotations_of: _ReferredAnnotations,
    *,
    dataset: str,
    problems: Problems,
) -> Iterator[RawRecord]:
    """Join refs with their annotations and images.

    Args:
        files: `refs` and `instances`.
        settings: which text, whose photographs.
        annotations_of: the ids of the annotations that a ref is about, none if it is about nothing.
        dataset: for images and annotations that are not COCO's.
        problems: the refs that are left out: `ref_without_sentences`, `unknown_annotation`, `unknown_image` (not in
            `instances`), `unusable_image_name`; and `crowd_region`, a group under one mask, which is kept. Also those
            of `read_refs` and `read_instances`.

    Raises:
        DataError: a ref and its annotation name different images, or the two files have nothing in common.
    """
    refs = read_refs(files["refs"], text=settings.text, problems=problems)
    referred = [annotations_of(ref) if ref.expressions else () for ref in refs]
    instances = read_instances(
        files["instances"],
        image_ids={ref.image_id for ref in refs},
        annotation_ids={one for ann_ids in referred for one in ann_ids},
        problems=problems,
    )
    if any(referred) and not instances.annotations:
        raise DataError(
            f"it has none of the annotations that {files['refs'].name} refers to",
            where=str(files["instances"]),
            hint="take the instances.json of the same folder, or COCO's instances_train2014.json",
        )
    for ref, ann_ids in zip(refs, referred, strict=True):
        if not ref.expressions and not ref.absent:
            problems.add("ref_without_sentences", ref.where)
            continue
        told = instances.images.get(ref.image_id)
        if told is None:
            texts = len(ref.expressions) + len(ref.absent)
            problems.add("unknown_image", ref.where, f"image {ref.image_id}, {texts} expressions")
            continue
        try:
            image = _image(told, instances, settings, dataset, where=f"{files['instances'].name}: image {told.id}")
        except DataError as error:
            problems.add("unusable_image_name", ref.where, f"{error.where}: {error.message}")
            continue
        annotations = _annotations(ref, ann_ids, instances, problems) if ref.expressions else None
        for split in ref.splits:
            if annotations is not None:
                regions = _regions(annotations, image, dataset)
                yield RawRecord(split, image, ref.expressions, regions, ref.where)
            if ref.absent:
                yield RawRecord(split, image, ref.absent, (), ref.where)


def sniff_refer(path: Path) -> bool:
    """Whether a file is a list of refs with one annotation each."""
    return sniff_refs(path) == "one"


def refs_names(stem: str) -> tuple[str, ...]:
    """Names that a refs file goes by: "refs(unc).p", "refs_unc.json.gz" and so on for the stem "refs"."""
    return tuple(
        f"{stem}{form.format(author)}{suffix}"
        for author in SPLIT_AUTHORS
        for form in ("({})", "_{}")
        for suffix in (".p", ".json", ".p.gz", ".json.gz")
    )


def _the_annotation(ref: Ref) -> tuple[Id, ...]:
    if ref.has_list:
        raise DataError(
            "the ref has a list of annotations, as in gRefCOCO", where=ref.where, hint="read it with --format grefcoco"
        )
    return ref.ann_ids


def _annotations(
    ref: Ref, ann_ids: tuple[Id, ...], instances: Instances, problems: Problems
) -> list[CocoAnnotation] | None:
    """The annotations of a ref; None if one of them is not known."""
    annotations = []
    for ann_id in ann_ids:
        annotation = instances.annotations.get(ann_id)
        if annotation is None:
            problems.add("unknown_annotation", ref.where, f"annotation {ann_id}, {len(ref.expressions)} expressions")
            return None
        if annotation.image_id != ref.image_id:
            raise DataError(
                f"the ref is about image {ref.image_id}, its annotation {ann_id} about image {annotation.image_id}",
                where=ref.where,
                hint="the refs file and instances.json are not of the same release",
            )
        annotations.append(annotation)
    for annotation in annotations:
        if annotation.iscrowd == 1:
            problems.add("crowd_region", ref.where, f"annotation {annotation.id}")
    return annotations


def _regions(annotations: list[CocoAnnotation], image: RawImage, dataset: str) -> tuple[RawRegion, ...]:
    family = "coco" if image.key.startswith("coco:") else dataset
    return tuple(coco_region(annotation, family=family) for annotation in annotations)


def _image(told: CocoImage, instances: Instances, settings: ReferSettings, dataset: str, *, where: str) -> RawImage:
    number = number_of(told.id)
    if settings.images != "auto" and number is None:
        raise DataError(f"the id {told.id!r} is not the number of a photograph", where=where)
    if number is not None and (
        settings.images == "coco"
        or (settings.images == "auto" and (told.id in instances.of_coco or number == coco_id(told.file_name)))
    ):
        return coco_image(number, width=told.width, height=told.height)
    if settings.images == "saiapr" and number is not None:
        return saiapr_image(number, width=told.width, height=told.height)
    if not told.file_name.strip():
        raise DataError(
            "the image has no file_name",
            where=where,
            hint="the setting images: coco (or saiapr) finds photographs by their ids",
        )
    return own_image(told.file_name, dataset=dataset, width=told.width, height=told.height)


SOURCE = Source(
    description="REFER's refs(<split_by>).p or .json with instances.json: RefCOCO, RefCOCO+, RefCOCOg, refclef",
    read=read_refer,
    settings=ReferSettings,
    files={"refs": refs_names("refs"), "instances": INSTANCES_NAMES},
    sniff=sniff_refer,
)
