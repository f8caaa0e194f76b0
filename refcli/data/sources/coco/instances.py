"""COCO's instances file: the objects of each image, with their polygons left as undecoded JSON."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from refcli.data.reading.json_files import parse_json, read_json
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawRegion
from refcli.data.sources.rows import UNREADABLE_BOX, Id, Rejections, comparable_id, decode_row, valid_side, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

BoxXYWH = tuple[float, float, float, float]
IMAGE_EXTRAS = frozenset({"license", "coco_url", "flickr_url", "date_captured", "flickr_640_url", "neg_category_ids"})
ANNOTATION_EXTRAS = frozenset({"area", "keypoints", "num_keypoints", "attributes"})
_FILE = KnownKeys(
    "file", frozenset({"images", "annotations", "categories"}), frozenset({"info", "licenses", "license", "type"})
)
_IMAGE = KnownKeys("image", frozenset({"id", "file_name", "width", "height"}), IMAGE_EXTRAS)
_ANNOTATION = KnownKeys(
    "annotation",
    frozenset({"id", "image_id", "bbox", "iscrowd", "segmentation"}),
    ANNOTATION_EXTRAS | {"category_id"},
    has_box=True,
)
_COCO_URL = re.compile(r"https?://[^/]*\b(?:cocodataset|mscoco)\.org/.*?0*([0-9]+)\.jpg")


class CocoImage(NamedTuple):
    """One image of the file; its size in pixels, None where a fork leaves it out."""

    id: Id
    file_name: str
    width: int | None
    height: int | None


class CocoAnnotation(NamedTuple):
    """One object of the file."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: BoxXYWH | None
    """Left, top, width and height in continuous, 0-based pixels; None if missing or unreadable."""
    iscrowd: int
    """1: a group of objects under one mask. The form of `segmentation` does not depend on it."""
    segmentation: bytes
    """Undecoded JSON (polygons, a run-length dict or a list of those); empty: no mask."""


@dataclass(frozen=True)
class Instances:
    """The part of an instances file that was kept, by id."""

    images: dict[Id, CocoImage]
    annotations: dict[Id, CocoAnnotation]
    categories: dict[Id, str]
    of_coco: frozenset[Id] = frozenset()
    """The images whose URL in the file shows that they are COCO's."""


class CocoLists(NamedTuple):
    """The lists of a COCO file, with undecoded rows."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


# Ids are strings in some forks, with leading zeros in others.
_RawId = int | str | float


class _Image(msgspec.Struct):
    id: _RawId
    file_name: str = ""
    width: int | None = None
    height: int | None = None
    coco_url: str | None = None


class _Annotation(msgspec.Struct):
    id: _RawId
    image_id: _RawId
    bbox: msgspec.Raw = msgspec.Raw(b"null")
    category_id: _RawId = 0
    iscrowd: int | bool = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Ids(msgspec.Struct):
    id: msgspec.Raw
    image_id: msgspec.Raw = msgspec.Raw(b"null")


class _Category(msgspec.Struct):
    id: _RawId
    name: str = ""


NO_MASK = frozenset((b"null", b"[]", b"{}", b'""'))


def read_coco_lists(path: Path, problems: Problems) -> CocoLists:
    """The lists of a COCO file; callers decode the rows one at a time.

    Args:
        path: plain or gzipped JSON.
        problems: collects unknown keys of the file.

    Raises:
        DataError: there is no list of images or annotations, or a key declares boxes of another form than COCO's.
    """
    file = read_json(path, dict[str, msgspec.Raw])
    log = KeyLog(path.name, problems)
    log.check(_FILE, file, str(path))
    log.finish()
    for key in ("images", "annotations"):
        if key not in file:
            raise DataError(f"there is no list of {key}", where=str(path), hint="check that it is in COCO's format")
    images, annotations = (
        parse_json(file[key], list[msgspec.Raw], where=f"{path}: {key}") for key in ("images", "annotations")
    )
    try:
        categories = parse_json(
            file.get("categories", msgspec.Raw(b"[]")), list[msgspec.Raw], where=f"{path}: categories"
        )
    except DataError:
        problems.add("unreadable_value", f"{path.name}: categories", "no list")
        categories = []
    return CocoLists(images, annotations, categories)


def category_names(rows: list[msgspec.Raw]) -> dict[Id, str]:
    """Category -> name; rows without either are skipped."""
    names: dict[Id, str] = {}
    for raw in rows:
        try:
            row = msgspec.json.decode(raw, type=_Category, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        names[comparable_id(row.id)] = row.name
    return names


def read_instances(
    path: Path,
    *,
    image_ids: Collection[Id] | None = None,
    annotation_ids: Collection[Id] | None = None,
    problems: Problems | None = None,
) -> Instances:
    """Read `instances.json` of the REFER family, or COCO's own `instances_train2014.json`.

    Rows are decoded one at a time and only the wanted ones are copied, so that peak memory is the size of the file plus
    that of the result. Other rows are not checked, except for their ids.

    Args:
        path: plain or gzipped JSON.
        image_ids: keep only these images and, by default, only their annotations.
        annotation_ids: keep exactly these annotations, whatever their image.
        problems: collects rows and values that cannot be read, `broken_row`, `unreadable_value` and `unreadable_box`,
            and `unused_key`; None: they are errors.

    Raises:
        DataError: not a COCO file, or one id stands for two different rows.
    """
    found = Problems() if problems is None else problems
    file = read_coco_lists(path, found)
    reading = _Reading(path, found, Rejections(found), KeyLog(path.name, found), is_strict=problems is None)
    wanted_images = None if image_ids is None else frozenset(image_ids)
    wanted_annotations = None if annotation_ids is None else frozenset(annotation_ids)
    images, of_coco = reading.images(file.images, wanted_images)
    annotations = reading.annotations(file.annotations, wanted_images, wanted_annotations)
    reading.keys.finish()
    return Instances(images, annotations, category_names(file.categories), of_coco)


@dataclass(frozen=True)
class _Reading:
    """The state of one file while it is read."""

    path: Path
    problems: Problems
    rejections: Rejections
    keys: KeyLog
    is_strict: bool

    def images(
        self, rows: list[msgspec.Raw], wanted: frozenset[Id] | None
    ) -> tuple[dict[Id, CocoImage], frozenset[Id]]:
        images: dict[Id, CocoImage] = {}
        of_coco: set[Id] = set()
        for where, raw, image_id, _ in self._with_ids(rows, "images"):
            if wanted is not None and image_id not in wanted:
                continue
            try:
                row = decode_row(
                    raw,
                    _Image,
                    where=where,
                    problems=self.problems,
                    needed=self._needed(_Image),
                    keys=(_IMAGE, self.keys),
                )
            except DataError as error:
                self._reject(error, where)
                continue
            image = CocoImage(image_id, row.file_name, valid_side(row.width), valid_side(row.height))
            if images.setdefault(image_id, image) != image:
                raise DataError(f"two different images have the id {image_id}", where=where)
            if is_coco_url(row.coco_url, image_id):
                of_coco.add(image_id)
        return images, frozenset(of_coco)

    def annotations(
        self, rows: list[msgspec.Raw], wanted_images: frozenset[Id] | None, wanted: frozenset[Id] | None
    ) -> dict[Id, CocoAnnotation]:
        annotations: dict[Id, CocoAnnotation] = {}
        for where, raw, annotation_id, image_id in self._with_ids(rows, "annotations"):
            if wanted is not None and annotation_id not in wanted:
                continue
            if wanted is None and wanted_images is not None and image_id not in wanted_images:
                continue
            try:
                annotation = self._annotation(raw, annotation_id, where)
            except DataError as error:
                self._reject(error, where)
                continue
            if annotations.setdefault(annotation_id, annotation) != annotation:
                raise DataError(f"two different annotations have the id {annotation_id}", where=where)
        return annotations

    def _annotation(self, raw: msgspec.Raw, annotation_id: Id, where: str) -> CocoAnnotation:
        needed = self._needed(_Annotation)
        row = decode_row(
            raw, _Annotation, where=where, problems=self.problems, needed=needed, keys=(_ANNOTATION, self.keys)
        )
        segmentation = bytes(row.segmentation)
        box = read_box(row.bbox)
        if box is None:
            if self.is_strict:
                raise DataError(f"bbox is not x, y, width and height but {bytes(row.bbox)[:60]!r}", where=where)
            self.problems.add(UNREADABLE_BOX, where, f"annotation {annotation_id}")
        return CocoAnnotation(
            id=annotation_id,
            image_id=comparable_id(row.image_id),
            category_id=comparable_id(row.category_id),
            bbox=box,
            iscrowd=int(row.iscrowd),
            segmentation=b"" if segmentation in NO_MASK else segmentation,
        )

    def _with_ids(self, rows: list[msgspec.Raw], key: str) -> Iterator[tuple[str, msgspec.Raw, Id, Id | None]]:
        """Place, row, its id and its image's id."""
        decode = msgspec.json.Decoder(_Ids, strict=False).decode
        place = str(self.path) if self.is_strict else self.path.name
        for index, raw in enumerate(rows):
            where = f"{place}: {key}[{index}]"
            try:
                ids = decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._reject(DataError("this is not an object with an id", where=where), where)
                continue
            own = id_of(ids.id)
            if own is None:
                self._reject(
                    DataError(f"{bytes(ids.id)[:40].decode('utf-8', 'replace')} is not an id", where=where), where
                )
                continue
            yield where, raw, own, id_of(ids.image_id)

    def _needed(self, kind: type[msgspec.Struct]) -> Collection[str]:
        return frozenset(kind.__struct_fields__) if self.is_strict else frozenset()

    def _reject(self, error: DataError, where: str) -> None:
        if self.is_strict:
            raise error
        self.rejections.add(error, where)


def id_of(text: msgspec.Raw) -> Id | None:
    """A JSON value as an id; None if it is not an id."""
    try:
        value = msgspec.json.decode(text, type=_RawId)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return comparable_id(value)


def read_box(text: bytes | msgspec.Raw) -> BoxXYWH | None:
    """The four numbers of a box, finite or not; None for anything else."""
    try:
        return msgspec.json.decode(text, type=BoxXYWH, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def is_coco_url(url: str | None, image_id: object) -> bool:
    """Whether a URL is that of the image with this id on COCO's server."""
    match = _COCO_URL.fullmatch(url or "")
    return match is not None and whole_number(match[1]) == whole_number(image_id)


def coco_region(annotation: CocoAnnotation, *, family: str = "coco") -> RawRegion:
    """The region of an annotation; `family` is the data set that the annotation's id belongs to."""
    box = None if annotation.bbox is None else xywh_to_xyxy(annotation.bbox)
    return RawRegion(box, annotation.segmentation or None, f"{family}:{annotation.id}")


def xywh_to_xyxy(box_xywh: BoxXYWH) -> BoxXYXY:
    """Left, top, width, height to the two corners, the second one exclusive."""
    left, top, width, height = box_xywh
    return left, top, left + width, top + height
