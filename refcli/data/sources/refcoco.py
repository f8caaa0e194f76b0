"""RefCOCO, RefCOCO+, RefCOCOg and refclef in the REFER layout: `refs(<split_by>).p` beside `instances.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import convert, read_json
from refcli.data.reading.pickles import read_pickle
from refcli.data.reading.streams import text_start
from refcli.data.sources.coco.instances import CocoImage, Instances, coco_region, read_instances
from refcli.data.sources.image_names import coco_id, coco_image, own_image, saiapr_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Id, Rejections, Row, comparable_id, convert_row, decode_row, whole_number
from refcli.errors import DataError

TextField = Literal["sent", "raw"]
"""`sent`: lower case, spelling and punctuation normalised; `raw`: as typed."""
INSTANCES_NAMES = ("instances.json", "instances.json.gz", "instances_train2014.json", "instances_train2014.json.gz")
SPLIT_AUTHORS = ("unc", "umd", "google", "berkeley")
ZERO = "zero"
"""`source` of Ref-ZOM's refs without a target."""
NO_ANNOTATION = -1
"""The annotation id of a ref without a target."""
_JOINT_SPLIT = re.compile(r"test([A-Z]{2,})")
_PICKLE_STARTS = (b"\x80", b"(l", b"]")
# What follows the first "ann_id": in JSON a bracket; in a pickle, after storing the key, EMPTY_LIST or MARK.
_ANN_ID_IS_LIST = re.compile(rb"""ann_id(?:"\s*:\s*\[|['\n]*(?:p[0-9]+\n|q.|r.{4}|\x94)?[\](])""", re.DOTALL)
_REF_KEYS = KnownKeys(
    "ref",
    frozenset({"ref_id", "image_id", "ann_id", "split", "sentences", "no_target", "exist", "source"}),
    frozenset({"sent_ids", "file_name", "category_id", "category", "image_info", "att_wds"}),
)
_SENTENCE_KEYS = KnownKeys("sentence", frozenset({"sent", "raw", "sent_id", "exist"}), frozenset({"tokens"}))

_RawId = int | str | float


class ReferSettings(Settings):
    """Options of the REFER reader."""

    text: TextField = "sent"
    """`sent`: the cleaned sentence, which the literature uses; `raw`: as typed."""
    images: Literal["auto", "coco", "saiapr"] = "auto"
    """What the image ids number: COCO's images or SAIAPR's (refclef). `auto`: COCO's where `instances.json` has the id
    in the name COCO_train2014_<id>.jpg or in a COCO URL; otherwise files are searched for by name."""


class Sentence(msgspec.Struct):
    """One sentence of a ref."""

    sent: str | None = None
    raw: str | None = None
    sent_id: int | str | None = None
    exist: bool | None = None
    """False: it has no target in the image, whatever the annotations (R-RefCOCO)."""


class Ref(msgspec.Struct):
    """One entry of a refs file: sentences about the same annotations of one image."""

    ref_id: int | str
    image_id: _RawId
    ann_id: _RawId | list[_RawId] | None
    split: str
    sentences: list[Any]
    """Undecoded in the file; `read_refs` replaces them with the usable ones, as `Sentence`s that have a `sent_id`."""
    no_target: bool | None = None
    """gRefCOCO's flag."""
    exist: bool | None = None
    source: str | None = None

    def place(self, path: Path) -> str:
        """The ref's place in its file, for messages."""
        return f"{path.name}: ref {self.ref_id}"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the ref: the joint value "testAB" stands for testA and testB."""
        joint = _JOINT_SPLIT.fullmatch(self.split)
        return tuple(f"test{letter}" for letter in joint[1]) if joint else (self.split,)

    @property
    def is_zero(self) -> bool:
        """Whether its `source` states that it has no target (Ref-ZOM)."""
        return self.source is not None and self.source.strip().casefold() == ZERO

    @property
    def ann_ids(self) -> tuple[Id, ...]:
        """The ids of its annotations; -1 may stand for none."""
        given = self.ann_id if isinstance(self.ann_id, list) else [self.ann_id]
        return tuple(comparable_id(one) for one in given if one is not None)

    def expressions(self, text: TextField, *, present: bool) -> tuple[RawExpression, ...]:
        """The sentences that have a target in the image (`present`), or those that have none."""
        has_none = self.exist is False or self.is_zero
        return tuple(
            RawExpression(f"{self.ref_id}/{sentence.sent_id}", getattr(sentence, text))
            for sentence in self.sentences
            if present is not (has_none or sentence.exist is False)
        )


def read_refs(path: Path, *, text: TextField, problems: Problems) -> list[Ref]:
    """Read `refs(<split_by>).p` or `grefs(<split_by>).json`: pickles of Python 2 and 3, and JSON; plain or gzip.

    Args:
        path: the file; its form is recognised by its first bytes.
        text: the form of the sentences to use. Byte strings of Python 2 arrive as Latin-1.
        problems: collects refs and sentences that are left out, `broken_ref` and `broken_sentence`; `unused_key`; and
            `no_target_with_annotations` (Ref-ZOM's source "zero" beside annotations, read as no target).

    The id of an expression is `<ref_id>/<sent_id>`: what precedes the slash joins the sentences of a ref that have a
    target with those that have none (R-RefCOCO). A sentence without a target whose `sent_id` its ref has already used
    gets its position: `<ref_id>/<sent_id>-<position>`.

    Raises:
        DataError: the file is not a refs file, no ref can be used, no sentence has the requested form, or an id occurs
            twice.
    """
    start = text_start(path)
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
    """Whether a file looks like refs with one annotation each, like refs with lists of them, or like neither."""
    head = text_start(path)
    if not head.startswith((b"[", *_PICKLE_STARTS)):
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
                ref = self._decode(row, Ref, where, _REF_KEYS)
                where = ref.place(self._path)
                if not ref.split:
                    raise DataError("the ref has no split", where=where)
                self._check_source(ref, where)
                ref.sentences = list(self._sentences(ref, where))
            except DataError as error:
                rejected.add(error, f"{self._path.name}: refs[{index}]")
                continue
            for number, sentence in enumerate(ref.sentences):
                identity = f"{ref.ref_id}/{sentence.sent_id}"
                if identity in seen and sentence.exist is False:
                    sentence.sent_id = f"{sentence.sent_id}-{number}"
                    identity = f"{ref.ref_id}/{sentence.sent_id}"
                if identity in seen:
                    raise DataError(f"the id {identity} (ref_id/sent_id) occurs twice", where=where)
                seen.add(identity)
            refs.append(ref)
        self._keys.finish()
        if not refs:
            rejected.raise_first()
        if not seen:
            self._rejected_sentences.raise_first()
        return refs

    def _check_source(self, ref: Ref, where: str) -> None:
        """Compare what a ref states about its target with its annotations.

        The source "zero" takes precedence over annotations, as in DMMI's evaluation.

        Raises:
            DataError: the ref should have a target and has no annotation.
        """
        named = any(ann_id != NO_ANNOTATION for ann_id in ref.ann_ids)
        if ref.ann_id is None and not (ref.is_zero or ref.no_target or ref.exist is False):
            raise DataError("ann_id is null, and nothing states that the ref has no target", where=where)
        if ref.is_zero and named:
            self._problems.add("no_target_with_annotations", where, f"annotations {list(ref.ann_ids)}")
        if ref.source is not None and not ref.is_zero and not named and ref.no_target is None:
            raise DataError(f"the source is {excerpt(ref.source)}, but the ref has no annotation", where=where)

    def _sentences(self, ref: Ref, where: str) -> Iterator[Sentence]:
        for number, row in enumerate(ref.sentences):
            place = f"{where}, sentence {number}"
            try:
                sentence = self._decode(row, Sentence, place, _SENTENCE_KEYS, needed={"exist"})
                if getattr(sentence, self._text) is None:
                    raise self._missing_text(sentence, number, where)
            except DataError as error:
                self._rejected_sentences.add(error, place)
                continue
            if sentence.sent_id is None:
                sentence.sent_id = number
            yield sentence

    def _missing_text(self, sentence: Sentence, number: int, where: str) -> DataError:
        """The reason why a sentence without the requested form cannot be used."""
        if sentence.sent is None and sentence.raw is None:
            return DataError("there is no text", where=where)
        other = "raw" if self._text == "sent" else "sent"
        return DataError(
            f"sentence {number} has no {self._text!r}",
            where=where,
            hint=f"--set text={other} takes the other form",
        )

    def _decode(
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


def read_refer(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per ref and split; see `Reader`.

    Args:
        files: `refs` and `instances`; the latter may be COCO's own file for all of train2014.
        settings: a `ReferSettings`.
        dataset: prefix for images and annotations that are not COCO's.
        problems: see `read_refs` and `join_refs`.
    """
    assert isinstance(settings, ReferSettings)
    refs = read_refs(files["refs"], text=settings.text, problems=problems)
    return join_refs(refs, files, settings, single_annotation, dataset=dataset, problems=problems)


def join_refs(
    refs: Sequence[Ref],
    files: Mapping[str, Path],
    settings: ReferSettings,
    annotations_of: Callable[[Ref, str], tuple[Id, ...]],
    *,
    dataset: str,
    problems: Problems,
) -> Iterator[RawRecord]:
    """Join refs with their annotations and images.

    Args:
        refs: with usable sentences.
        files: `refs`, the file of the refs, and `instances`.
        settings: the text form and the origin of the images.
        annotations_of: called with a ref and its place; returns the ids of its annotations, none for no target.
        dataset: prefix for images and annotations that are not COCO's.
        problems: collects the refs that are left out: `ref_without_sentences`, `unknown_annotation`, `unknown_image`
            (not in `instances`), `unusable_image_name`; and `crowd_region`, a group under one mask, which is kept; and
            the problems of `read_instances`.

    Raises:
        DataError: a ref and its annotation name different images, or the two files have nothing in common.
    """
    path = files["refs"]
    present = [ref.expressions(settings.text, present=True) for ref in refs]
    referred = [annotations_of(ref, ref.place(path)) if texts else () for ref, texts in zip(refs, present, strict=True)]
    instances = read_instances(
        files["instances"],
        image_ids={comparable_id(ref.image_id) for ref in refs},
        annotation_ids={ann_id for ann_ids in referred for ann_id in ann_ids},
        problems=problems,
    )
    if any(referred) and not instances.annotations:
        raise DataError(
            f"it has none of the annotations that {path.name} refers to",
            where=str(files["instances"]),
            hint="take the instances.json of the same folder, or COCO's instances_train2014.json",
        )
    join = _Join(files, settings, dataset, instances, problems)
    for ref, texts, ann_ids in zip(refs, present, referred, strict=True):
        yield from join.records(ref, texts, ann_ids)


@dataclass(frozen=True)
class _Join:
    """Refs while they are joined with their annotations and images."""

    files: Mapping[str, Path]
    settings: ReferSettings
    dataset: str
    instances: Instances
    problems: Problems

    def records(self, ref: Ref, texts: tuple[RawExpression, ...], ann_ids: tuple[Id, ...]) -> Iterator[RawRecord]:
        """The records of a ref, whose sentences with a target are `texts`, in each of its splits."""
        where = ref.place(self.files["refs"])
        absent = ref.expressions(self.settings.text, present=False)
        if not texts and not absent:
            self.problems.add("ref_without_sentences", where)
            return
        image_id = comparable_id(ref.image_id)
        entry = self.instances.images.get(image_id)
        if entry is None:
            self.problems.add("unknown_image", where, f"image {image_id}, {len(texts) + len(absent)} expressions")
            return
        try:
            image = self._image(entry)
        except DataError as error:
            self.problems.add("unusable_image_name", where, f"{error.where}: {error.message}")
            return
        family = "coco" if image.key.startswith("coco:") else self.dataset
        regions = self._regions(ann_ids, image_id, family, where, len(texts)) if texts else None
        for split in ref.splits:
            if regions is not None:
                yield RawRecord(split, image, texts, regions, where)
            if absent:
                yield RawRecord(split, image, absent, (), where)

    def _regions(
        self, ann_ids: tuple[Id, ...], image_id: Id, family: str, where: str, num_expressions: int
    ) -> tuple[RawRegion, ...] | None:
        """The regions of annotations of an image; None if one of the annotations is unknown."""
        annotations = []
        for ann_id in ann_ids:
            annotation = self.instances.annotations.get(ann_id)
            if annotation is None:
                self.problems.add("unknown_annotation", where, f"annotation {ann_id}, {num_expressions} expressions")
                return None
            if annotation.image_id != image_id:
                raise DataError(
                    f"the ref is about image {image_id}, its annotation {ann_id} about image {annotation.image_id}",
                    where=where,
                    hint="the refs file and instances.json come from different releases",
                )
            annotations.append(annotation)
        for annotation in annotations:
            if annotation.iscrowd == 1:
                self.problems.add("crowd_region", where, f"annotation {annotation.id}")
        return tuple(coco_region(annotation, family=family) for annotation in annotations)

    def _image(self, entry: CocoImage) -> RawImage:
        where = f"{self.files['instances'].name}: image {entry.id}"
        number = whole_number(entry.id)
        origin = self.settings.images
        if origin == "auto" and number is not None:
            is_coco = entry.id in self.instances.of_coco or number == coco_id(entry.file_name)
            origin = "coco" if is_coco else "auto"
        if origin != "auto":
            if number is None:
                raise DataError(f"the id {entry.id!r} is not the number of an image", where=where)
            make_image = coco_image if origin == "coco" else saiapr_image
            return make_image(number, width=entry.width, height=entry.height)
        if not entry.file_name.strip():
            raise DataError(
                "the image has no file_name",
                where=where,
                hint="the setting images: coco (or saiapr) finds images by their ids",
            )
        return own_image(entry.file_name, dataset=self.dataset, width=entry.width, height=entry.height)


def sniff_refer(path: Path) -> bool:
    """Whether a file is a list of refs with one annotation each."""
    return sniff_refs(path) == "one"


def refs_names(stem: str) -> tuple[str, ...]:
    """The usual names of a refs file: "refs(unc).p", "refs_unc.json.gz" and so on for the stem "refs"."""
    return tuple(
        f"{stem}{form.format(author)}{suffix}"
        for author in SPLIT_AUTHORS
        for form in ("({})", "_{}")
        for suffix in (".p", ".json", ".p.gz", ".json.gz")
    )


def single_annotation(ref: Ref, where: str) -> tuple[Id, ...]:
    """The id of the annotation of a ref that has exactly one.

    Raises:
        DataError: the ref has a list of them, or states that it has no target.
    """
    if isinstance(ref.ann_id, list) or ref.no_target:
        raise DataError(
            f"the ref has {'no target' if ref.no_target else 'a list of annotations'}, as in gRefCOCO",
            where=where,
            hint="read it with --format grefcoco",
        )
    return ref.ann_ids


SOURCE = Source(
    description="REFER's refs(<split_by>).p or .json with instances.json: RefCOCO, RefCOCO+, RefCOCOg, refclef",
    read=read_refer,
    settings=ReferSettings,
    files={"refs": refs_names("refs"), "instances": INSTANCES_NAMES},
    sniff=sniff_refer,
)
