"""COCO's instances file: which objects are in which image, with their polygons left as the file's JSON text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from refcli.data.reading.json_files import read_json
from refcli.data.sources.record import BoxXYXY, RawImage, RawRegion
from refcli.errors import DataError

BoxXYWH = tuple[float, float, float, float]


class CocoImage(NamedTuple):
    """One picture of the file; its size in pixels, None where a fork leaves it out."""

    id: int
    file_name: str
    width: int | None
    height: int | None


class CocoAnnotation(NamedTuple):
    """One object of the file."""

    id: int
    image_id: int
    category_id: int
    bbox: BoxXYWH
    """Left, top, width and height: continuous, 0-based pixels."""
    iscrowd: int
    """1: a group of objects under one mask. It says nothing about the form of `segmentation`."""
    segmentation: bytes
    """JSON text (polygons, a run-length dict or a list of them) as in the file; empty: no mask."""


@dataclass(frozen=True)
class Instances:
    """What was kept of an instances file, by id."""

    images: dict[int, CocoImage]
    annotations: dict[int, CocoAnnotation]
    categories: dict[int, str]


# Ids are strings in some forks, with leading zeros in others.
_Id = int | str


class _Image(msgspec.Struct):
    id: _Id
    file_name: str = ""
    width: int | None = None
    height: int | None = None


class _Annotation(msgspec.Struct):
    id: _Id
    image_id: _Id
    bbox: BoxXYWH
    category_id: _Id = 0
    iscrowd: int | bool = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Category(msgspec.Struct):
    id: _Id
    name: str = ""


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[_Category] = []


_Row = TypeVar("_Row", _Image, _Annotation)
_NO_MASK = frozenset((b"null", b"[]", b"{}", b'""'))


def read_instances(
    path: Path, *, image_ids: Collection[int] | None = None, annotation_ids: Collection[int] | None = None
) -> Instances:
    """Read `instances.json` of the REFER family, or COCO's own `instances_train2014.json`.

    The list entries are decoded one at a time and only kept ones are copied, so the peak is the file's size plus what
    is kept.

    Args:
        path: plain or gzipped JSON.
        image_ids: keep only these images, and by default only annotations of them.
        annotation_ids: keep exactly these annotations, whatever their image.

    Raises:
        DataError: not a COCO file, an id that is no number, or one id with two meanings.
    """
    file = read_json(path, _File)
    wanted_images = None if image_ids is None else frozenset(image_ids)
    wanted_annotations = None if annotation_ids is None else frozenset(annotation_ids)
    images = _images(file.images, wanted_images, path)
    annotations = _annotations(file.annotations, wanted_images, wanted_annotations, path)
    categories = {_number(row.id, f"{path}: categories"): row.name for row in file.categories}
    return Instances(images, annotations, categories)


def coco_image(image_id: int, *, width: int | None, height: int | None) -> RawImage:
    """The photograph of COCO with this id, under its 2014 and 2017 names; sizes in pixels."""
    names = (f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg", f"COCO_val2014_{image_id:012d}.jpg")
    return RawImage(key=f"coco:{image_id}", names=names, width=width, height=height)


def coco_region(annotation: CocoAnnotation, *, family: str = "coco") -> RawRegion:
    """The object of an annotation; `family` says whose number its id is."""
    return RawRegion(xywh_to_xyxy(annotation.bbox), annotation.segmentation or None, f"{family}:{annotation.id}")


def xywh_to_xyxy(box_xywh: BoxXYWH) -> BoxXYXY:
    """Left, top, width, height to the two corners, the second one exclusive."""
    left, top, width, height = box_xywh
    return left, top, left + width, top + height


def _images(rows: list[msgspec.Raw], wanted: frozenset[int] | None, path: Path) -> dict[int, CocoImage]:
    decoder = msgspec.json.Decoder(_Image, strict=False)
    images: dict[int, CocoImage] = {}
    for index, raw in enumerate(rows):
        where = f"{path}: images[{index}]"
        row = _decode(decoder, raw, where)
        image_id = _number(row.id, where)
        if wanted is None or image_id in wanted:
            image = CocoImage(image_id, row.file_name, row.width, row.height)
            if images.setdefault(image_id, image) != image:
                raise DataError(f"two different images have the id {image_id}", where=where)
    return images


def _annotations(
    rows: list[msgspec.Raw], wanted_images: frozenset[int] | None, wanted: frozenset[int] | None, path: Path
) -> dict[int, CocoAnnotation]:
    decoder = msgspec.json.Decoder(_Annotation, strict=False)
    annotations: dict[int, CocoAnnotation] = {}
    for index, raw in enumerate(rows):
        where = f"{path}: annotations[{index}]"
        row = _decode(decoder, raw, where)
        annotation_id = _number(row.id, where)
        image_id = _number(row.image_id, where)
        if wanted is not None and annotation_id not in wanted:
            continue
        if wanted is None and wanted_images is not None and image_id not in wanted_images:
            continue
        segmentation = bytes(row.segmentation)
        annotation = CocoAnnotation(
            id=annotation_id,
            image_id=image_id,
            category_id=_number(row.category_id, where),
            bbox=row.bbox,
            iscrowd=int(row.iscrowd),
            segmentation=b"" if segmentation in _NO_MASK else segmentation,
        )
        if annotations.setdefault(annotation_id, annotation) != annotation:
            raise DataError(f"two different annotations have the id {annotation_id}", where=where)
    return annotations


def _decode(decoder: msgspec.json.Decoder[_Row], raw: msgspec.Raw, where: str) -> _Row:
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise DataError(
            f"not a row of a COCO instances file: {error}", where=where, hint="give the instances.json of the release"
        ) from error


def _number(value: int | str, where: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise DataError(f"the id {value!r} is not a number", where=where) from error
