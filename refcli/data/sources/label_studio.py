"""Label Studio's JSON export: the annotators' boxes, polygons and brush masks of every task.

A task is `{"id", "data": {"image"}, "annotations": [{"result": [...], "was_cancelled", "ground_truth"}]}`. A result of
type `rectanglelabels`, `polygonlabels` or `brushlabels` is an object; its coordinates are percent of the image.
Predictions are no annotations. Tasks that `refcli convert-answers --to label-studio` wrote list every expression that
was asked in `data.expressions`; one without a region has no target in the image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, check_meaning, decoded
from refcli.data.sources.labels import LabelledImage, LabelToolSettings, outlined_region
from refcli.data.sources.record import Problems, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row, first_record_has, read_json_rows, valid_side, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY
from refcli.geometry.brush_masks import brush_mask

_PERCENT = 100.0
_LABELS = "labels"
"""Suffix of the types of labelled shapes; a type of its own where the shapes are a tag of theirs."""
_SHAPES = ("rectangle", "polygon", "brush")
_NO_SHAPES = frozenset(
    {"choices", "textarea", "taxonomy", "relation", "rating", "number", "datetime", "pairwise", "ranker"}
)  # fmt: skip
"""Types of results that mark no region of an image."""
_UPLOAD = re.compile(r"data/upload/(?:[0-9]+/)?[0-9a-f]{8}-(.+)")
"""Label Studio's name of an uploaded file: eight letters before its own name."""
_MINIMAL = b"annotation_id", b"annotator", b"lead_time"
"""Keys of a row of the export as JSON-MIN."""
_PAIRED = re.compile(r"(?:box|mask)-([0-9]+)")
"""The ids of the box and the mask of one target in tasks that refcli wrote."""


class LabelStudioSettings(LabelToolSettings):
    """Options of the reader of Label Studio's export."""

    image_key: str | None = None
    """The key of a task's `data` that holds the image. Default: `image_path`, `image`, or the only text."""


class _Task(msgspec.Struct):
    data: dict[str, msgspec.Raw]
    annotations: list[msgspec.Raw] = []
    id: int | str | None = None
    predictions: list[msgspec.Raw] = []


class _Annotation(msgspec.Struct):
    result: list[msgspec.Raw]
    was_cancelled: bool = False
    ground_truth: bool = False
    id: int | str | None = None
    updated_at: str | None = None


class _Result(msgspec.Struct):
    type: str
    value: msgspec.Raw = msgspec.Raw(b"{}")
    id: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float | None = None
    item_index: int | None = None


class _Value(msgspec.Struct):
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    rotation: float | None = None
    points: list[tuple[float, float]] | None = None
    closed: bool | None = None
    rle: list[int] | None = None
    format: str | None = None
    labels: list[str] | None = None
    rectanglelabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    brushlabels: list[str] | None = None
    ellipselabels: list[str] | None = None
    keypointlabels: list[str] | None = None
    bitmasklabels: list[str] | None = None

    def texts(self, kind: str) -> list[str]:
        """The labels of a result of this type."""
        texts: list[str] | None = getattr(self, kind, None) if kind.endswith(_LABELS) else None
        return texts or []


_TASK_KEYS = KnownKeys(
    "task",
    frozenset(_Task.__struct_fields__),
    frozenset({
        "agreement", "allow_skip", "annotations_ids", "annotations_results", "annotators", "avg_lead_time",
        "cancelled_annotations", "comment_authors", "comment_authors_count", "comment_count", "completed_at",
        "created_at", "drafts", "file_upload", "ground_truth", "inner_id", "is_labeled", "last_comment_updated_at",
        "meta", "overlap", "precomputed_agreement", "predictions_model_versions", "predictions_results",
        "predictions_score", "project", "reviewers", "reviewers_count", "reviews_accepted", "reviews_rejected",
        "storage_filename", "total_annotations", "total_predictions", "unresolved_comment_count", "updated_at",
        "updated_by",
    }),
)  # fmt: skip
_ANNOTATION_KEYS = KnownKeys(
    "annotation",
    frozenset(_Annotation.__struct_fields__),
    frozenset({
        "bulk_created", "completed_by", "created_at", "created_username", "draft_created_at", "import_id",
        "last_action", "last_created_by", "lead_time", "parent_annotation", "parent_prediction", "prediction",
        "project", "result_count", "reviews", "task", "unique_id", "updated_by",
    }),
)  # fmt: skip
_RESULT_KEYS = KnownKeys(
    "result",
    frozenset(_Result.__struct_fields__),
    frozenset({
        "from_name", "to_name", "origin", "score", "meta", "readonly", "hidden", "locked", "parentID", "from_id",
        "to_id", "direction", "labels",
    }),
)  # fmt: skip
_VALUE_KEYS = KnownKeys("value", frozenset(_Value.__struct_fields__), has_box=True)


class _Shape(NamedTuple):
    """A result with a region."""

    result: _Result
    value: _Value
    where: str


def read_label_studio(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield the records of every task with an annotation; see `Reader` and `labelled_records`.

    Of several annotations of a task, the last with `ground_truth` counts, else the one with the latest `updated_at`;
    cancelled ones never count. Ids `box-N` and `mask-N` are one object.

    Args:
        files: split -> file.
        settings: a `LabelStudioSettings`.
        dataset: prefix of the keys of images.
        problems: collects `broken_row` (a task), `broken_result` and its consequences (see `LabelledImage.records`),
            `task_without_annotation` and `unread_result` (a choice, a text, a relation ...); `several_annotations` of a
            task, of which one is read.

    Raises:
        DataError: no task can be used or has an annotation.
    """
    assert isinstance(settings, LabelStudioSettings)
    for split, path in files.items():
        reading = _Reading(split, path, dataset, settings, problems)
        yield from reading.records()


class _Reading:
    """The state of one file while it is read."""

    def __init__(self, split: str, path: Path, dataset: str, settings: LabelStudioSettings, problems: Problems) -> None:
        self._split, self._path, self._dataset, self._settings = split, path, dataset, settings
        self._problems = problems
        self._keys = KeyLog(path.name, problems)
        self._rejected = Rejections(problems, "broken_result")
        self._ids: set[str] = set()

    def records(self) -> Iterator[RawRecord]:
        if first_record_has(self._path, *_MINIMAL):
            raise DataError(
                "this is an export as JSON-MIN, which does not show what was cancelled",
                where=str(self._path),
                hint="export it from Label Studio as JSON",
            )
        tasks = list(read_json_rows(self._path, self._task, self._problems))
        originals = Counter(filter(None, map(_name_before_upload, tasks)))
        num_annotated = num_used = num_predictions = 0
        rejected = Rejections(self._problems)
        for task in tasks:
            num_predictions += len(task.row.predictions)
            try:
                annotation = self._chosen(task)
                if annotation is None:
                    continue
                num_annotated += 1
                found = list(self._records_of(task, annotation, originals))
            except DataError as error:
                rejected.add(error, task.where)
                continue
            num_used += 1
            yield from found
        if not num_used:
            rejected.raise_first()
        self._keys.finish()
        if not num_annotated:
            raise DataError(
                f"no task has an annotation; {num_predictions} predictions are not read",
                where=str(self._path),
                hint="submit or update the tasks in Label Studio, then export them as JSON",
            )

    def _task(self, text: bytes, number: int, where: str) -> _PlacedTask:
        row = decode_row(
            text, _Task, where=where, problems=self._problems, needed=("annotations",), keys=(_TASK_KEYS, self._keys)
        )
        identity = str(number if row.id is None else row.id)
        if identity in self._ids:
            raise DataError(f"an earlier task has the id {identity}", where=where)
        self._ids.add(identity)
        return _PlacedTask(row, identity, self._image_name(row.data, where), f"{self._path.name}: task {identity}")

    def _image_name(self, data: Mapping[str, msgspec.Raw], where: str) -> str:
        texts = {key: text for key, value in data.items() if isinstance(text := decoded(value), str)}
        key = self._settings.image_key
        if key is None:
            only = next(iter(texts)) if len(texts) == 1 else None
            key = next((one for one in ("image_path", "image") if one in texts), only)
        if key is None or not texts.get(key):
            raise DataError(
                "its data has no image" if key is None else f"its data has no {key}",
                where=where,
                hint=f"name the key of the image: --set image_key=KEY ({', '.join(texts) or 'no text there'})",
            )
        return texts[key] if key == "image_path" else _file_name(texts[key])

    def _chosen(self, task: _PlacedTask) -> _Annotation | None:
        """The annotation of a task that counts."""
        annotations = [
            decode_row(
                raw,
                _Annotation,
                where=f"{task.where}, annotation {number}",
                problems=self._problems,
                needed=("was_cancelled", "ground_truth"),
                keys=(_ANNOTATION_KEYS, self._keys),
            )
            for number, raw in enumerate(task.row.annotations, 1)
        ]
        done = [one for one in annotations if not one.was_cancelled]
        if not done:
            self._problems.add("task_without_annotation", task.where, f"{len(annotations)} cancelled")
            return None
        number = max(range(len(done)), key=lambda at: (done[at].ground_truth, done[at].updated_at or "", at))
        if len(done) > 1:
            self._problems.add(
                "several_annotations", task.where, f"the one with id {done[number].id} is read, of {len(done)}"
            )
        return done[number]

    def _records_of(
        self, task: _PlacedTask, annotation: _Annotation, originals: Mapping[str, int]
    ) -> Iterator[RawRecord]:
        broken: set[str | None] = set()
        shapes = list(self._shapes(annotation, task.where, broken))
        width, height = self._size(task, shapes)
        labelled = LabelledImage(
            self._image(task, originals, width, height), task.identity, self._split, task.where, broken=broken
        )
        named = {shape.result.id for shape in shapes if shape.value.texts(shape.result.type)}
        labels_of: dict[str, str] = {}
        for shape in shapes:
            texts = shape.value.texts(shape.result.type)
            if not texts and not shape.result.type.endswith(_LABELS) and shape.result.id in named:
                continue  # the shape of a result of type `labels`
            self._add(labelled, shape, texts, labels_of)
        seen = {_plain(one.category or "") for one, _ in labelled.objects} | {_plain(one or "") for one in broken}
        asked = self._asked(task) if self._settings.expressions == "given" else []
        absent = [text for text in asked if _plain(text) not in seen]
        yield from labelled.records(self._settings, self._problems, absent=absent)

    def _shapes(self, annotation: _Annotation, where: str, broken: set[str | None]) -> Iterator[_Shape]:
        """The results with a region; `broken` collects the labels of others that should have one."""
        for number, raw in enumerate(annotation.result, 1):
            place = f"{where}, result {number}"
            try:
                result = decode_row(
                    raw,
                    _Result,
                    where=place,
                    problems=self._problems,
                    needed=_Result.__struct_fields__,
                    keys=(_RESULT_KEYS, self._keys),
                )
                if result.type in _NO_SHAPES:
                    self._problems.add("unread_result", place, result.type)
                    continue
                value = decode_row(
                    result.value,
                    _Value,
                    where=place,
                    problems=self._problems,
                    needed=_Value.__struct_fields__,
                    keys=(_VALUE_KEYS, self._keys) if result.type.removesuffix(_LABELS) in ("", *_SHAPES) else None,
                )
            except DataError as error:
                self._rejected.add(error, place)
                broken.add(None)
                continue
            yield _Shape(result, value, place)

    def _add(self, labelled: LabelledImage, shape: _Shape, texts: Sequence[str], labels_of: dict[str, str]) -> None:
        paired = _PAIRED.fullmatch(shape.result.id or "")
        group = paired[1] if paired else None
        labels: Sequence[str | None] = texts or (None,)
        for text in labels:
            if group is not None and text is not None and labels_of.setdefault(group, text) != text:
                message = f"box-{group} and mask-{group} have different labels: {labels_of[group]!r} and {text!r}"
                self._rejected.add(DataError(message, where=shape.where), shape.where)
                labelled.broken.update((labels_of[group].strip(), text.strip()))
            is_ambiguous = len(texts) > 1 and self._settings.expressions == "template"
            parse = partial(_region, shape, is_ambiguous=is_ambiguous)
            labelled.add(parse, text, self._rejected, shape.where, group=group)

    def _size(self, task: _PlacedTask, shapes: Sequence[_Shape]) -> tuple[int | None, int | None]:
        """(width, height) of the image, as the results or the data of the task state it."""
        sizes = {(shape.result.original_width, shape.result.original_height) for shape in shapes} - {(None, None)}
        stated = tuple(whole_number(decoded(task.row.data.get(key))) for key in ("width", "height"))
        if None not in stated:
            sizes.add((stated[0], stated[1]))
        if len(sizes) > 1:
            raise DataError(f"it states different sizes of its image: {sorted(map(str, sizes))}", where=task.where)
        width, height = sizes.pop() if sizes else (None, None)
        return valid_side(width), valid_side(height)

    def _image(
        self, task: _PlacedTask, originals: Mapping[str, int], width: int | None, height: int | None
    ) -> RawImage:
        original = _name_before_upload(task)
        name = original if original and originals[original] == 1 else task.name
        return named_image(name, dataset=self._dataset, width=width, height=height, origin=self._settings.images)

    def _asked(self, task: _PlacedTask) -> list[str]:
        """The expressions that were asked about the image, each once."""
        raw = task.row.data.get("expressions")
        if raw is None:
            return []
        value = decoded(raw)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._problems.add("unreadable_value", task.where, "data.expressions is not a list of texts")
            return []
        return list(dict.fromkeys(value))


class _PlacedTask(NamedTuple):
    row: _Task
    identity: str
    name: str
    """Of the image."""
    where: str


def _name_before_upload(task: _PlacedTask) -> str | None:
    """The name of the image of a task before it was uploaded to Label Studio; None if it was not."""
    found = _UPLOAD.fullmatch(task.name.lstrip("/"))
    return found[1] if found else None


def _file_name(address: str) -> str:
    """The path of an image in its address: of local files, of a URL, or as it is."""
    parts = urlsplit(address) if "://" in address or "?" in address else None
    if parts is None:
        return address
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    return unquote(parts.path) if parts.scheme else address


def _plain(text: str) -> str:
    return " ".join(text.split())


def _region(shape: _Shape, *, is_ambiguous: bool) -> RawRegion:
    """The region of a result.

    Raises:
        DataError: it is rotated, of another shape, incomplete, or of another image of its task.
    """
    result, value, where = shape
    if is_ambiguous:
        raise DataError("it has several labels, so its class is unknown", where=where)
    if result.item_index:
        raise DataError("it belongs to a further image of its task", where=where)
    for angle in ("image_rotation", "rotation"):
        check_meaning("rotation", getattr(result if angle == "image_rotation" else value, angle), _VALUE_KEYS, where)
    width, height = valid_side(result.original_width), valid_side(result.original_height)
    if width is None or height is None:
        raise DataError("original_width or original_height is missing", where=where)
    kind = result.type.removesuffix(_LABELS) or _kind_of(value)
    if kind == "rectangle":
        return RawRegion(_box(value, width, height, where))
    if kind == "polygon":
        return _polygon(value, width, height, where)
    if kind == "brush":
        return RawRegion(None, _brush(value, width, height, where))
    raise DataError(f"a result of type {result.type!r} is not read", where=where, hint="use boxes, polygons or brushes")


def _kind_of(value: _Value) -> str:
    """The shape of a result of type `labels`."""
    if value.rle is not None:
        return "brush"
    return "polygon" if value.points is not None else "rectangle"


def _box(value: _Value, width: int, height: int, where: str) -> BoxXYXY:
    if value.x is None or value.y is None or value.width is None or value.height is None:
        raise DataError("a number of its box is missing", where=where)
    right, bottom = value.x + value.width, value.y + value.height
    across, down = width / _PERCENT, height / _PERCENT
    return value.x * across, value.y * down, right * across, bottom * down


def _polygon(value: _Value, width: int, height: int, where: str) -> RawRegion:
    if not value.points or value.closed is False:
        raise DataError("its polygon is open or has no points", where=where)
    points = [(x * width / _PERCENT, y * height / _PERCENT) for x, y in value.points]
    return outlined_region(points, where)


def _brush(value: _Value, width: int, height: int, where: str) -> partial[RLE]:
    if value.format not in (None, "rle") or value.rle is None:
        raise DataError("its brush mask has no run lengths", where=where, hint="export it with brush masks as RLE")
    try:
        return partial(brush_mask, bytes(value.rle), width, height)
    except ValueError as error:
        raise DataError("the run lengths of its brush mask are not bytes", where=where) from error


def sniff_label_studio(path: Path) -> bool:
    """Whether a file starts with a task, as exported, as imported with predictions, or as JSON-MIN."""
    keys = ((b"annotations", b"result"), (b"data", b"predictions", b"result"), _MINIMAL)
    return any(first_record_has(path, *each) for each in keys)


SOURCE = Source(
    description="Label Studio's export as JSON: boxes, polygons and brush masks",
    read=read_label_studio,
    settings=LabelStudioSettings,
    files={"*": ()},
    sniff=sniff_label_studio,
)
