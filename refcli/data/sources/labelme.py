"""labelme's JSON files, which X-AnyLabeling writes as well: rectangles, polygons and masks, one file per image.

A file is `{"imagePath", "imageHeight", "imageWidth", "shapes": [{"label", "shape_type", "points", "group_id"}]}`
with points in pixels. The `mask` of a shape is a PNG in base64 that covers the pixels from its first to its second
point. Shapes of one label and `group_id` are one object, as in labelme's `labelme2coco.py`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec
import numpy as np

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.data.reading.archives import list_files, read_file
from refcli.data.reading.json_files import parse_json
from refcli.data.reading.mask_images import MAX_MASK_FILE_BYTES, mask_pixels
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import ATTRIBUTES, KeyLog, KnownKeys
from refcli.data.sources.labels import LabelledImage, LabelToolSettings
from refcli.data.sources.record import Problems, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row, valid_side
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask, polygons_to_rle, union_masks

MAX_FILE_BYTES = 256 << 20
"""Maximum bytes of one file, which may hold its image."""
_RECTANGLE, _POLYGON, _MASK = "rectangle", "polygon", "mask"
_CORNERS = 4
_LEAST_POINTS = 3


class _File(msgspec.Struct, rename="camel"):
    shapes: list[msgspec.Raw]
    image_path: str
    image_height: int | None = None
    image_width: int | None = None
    flags: dict[str, bool | None] | None = None


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = _POLYGON
    group_id: int | str | None = None
    mask: str | None = None
    difficult: bool | None = None
    flags: dict[str, bool | None] | None = None


_FILE_FIELDS = _File.__struct_encode_fields__
_FILE_KEYS = KnownKeys(
    "file",
    frozenset({*_FILE_FIELDS, ATTRIBUTES}),
    frozenset({"checked", "description", "fillColor", "imageData", "lineColor", "text", "version"}),
)
_SHAPE_KEYS = KnownKeys(
    "shape",
    frozenset({*_Shape.__struct_fields__, ATTRIBUTES}),
    frozenset({"description", "fill_color", "kie_linking", "line_color", "score"}),
    has_box=True,
)


class _Part(NamedTuple):
    """A shape of an object."""

    points: list[tuple[float, float]]
    kind: str
    png: bytes = b""
    is_difficult: bool = False


def read_labelme(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield the records of every file, in the order of their names; see `Reader` and `labelled_records`.

    Args:
        files: split -> a folder, zip or tar of the files.
        settings: a `LabelToolSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_file`, `broken_shape` and its consequences (see `LabelledImage.records`), and
            `unused_key`.

    Raises:
        DataError: no file can be used.
    """
    assert isinstance(settings, LabelToolSettings)
    for split, folder in files.items():
        log = KeyLog(folder.name, problems)
        rejected, shapes = Rejections(problems, "broken_file"), Rejections(problems, "broken_shape")
        num_good = 0
        for name, file in list_files(folder, ".json").items():
            where = f"{PurePosixPath(file).name}: labels"
            try:
                text = read_file(folder, file, max_bytes=MAX_FILE_BYTES)
                row = decode_row(
                    text, _File, where=where, problems=problems, needed=_FILE_FIELDS, keys=(_FILE_KEYS, log)
                )
                log.check(_FILE_KEYS, {ATTRIBUTES: row.flags}, where)
                width, height = valid_side(row.image_width), valid_side(row.image_height)
                image = named_image(
                    _file_name(row.image_path), dataset=dataset, width=width, height=height, origin=settings.images
                )
            except DataError as error:
                rejected.add(DataError(error.message, where=where, hint=error.hint), where)
                continue
            labelled = LabelledImage(image, name, split, where)
            _add_shapes(labelled, row.shapes, log, shapes)
            num_good += 1
            yield from labelled.records(settings, problems)
        if not num_good:
            rejected.raise_first()
        log.finish()


def sniff_labelme(path: Path) -> bool:
    """Whether this is a folder or archive whose first JSON file has shapes and the path of an image."""
    try:
        first = next(iter(list_files(path, ".json").values()))
        text = read_file(path, first, max_bytes=MAX_FILE_BYTES)
        keys = parse_json(text, dict[str, msgspec.Raw], where=first).keys()
    except (DataError, OSError):
        return False
    return {"imagePath", "shapes"} <= keys


def _add_shapes(labelled: LabelledImage, shapes: Sequence[msgspec.Raw], log: KeyLog, rejected: Rejections) -> None:
    """Add the objects of a file: shapes of one label and group are one, others each their own."""
    objects: dict[tuple[str, object], list[_Part]] = {}
    for number, raw in enumerate(shapes, 1):
        place = f"{labelled.where}, shape {number}"
        label: str | None = None
        try:
            row = decode_row(
                raw,
                _Shape,
                where=place,
                problems=log.problems,
                needed=_Shape.__struct_fields__,
                keys=(_SHAPE_KEYS, log),
            )
            label = row.label.strip() or None
            log.check(_SHAPE_KEYS, {ATTRIBUTES: row.flags}, place)
            part = _part(row, place)
        except DataError as error:
            rejected.add(error, place)
            labelled.broken.add(label)
            continue
        own = ("shape", number) if row.group_id is None else ("group", row.group_id)
        objects.setdefault((row.label, own), []).append(part)
    for (name, _), parts in objects.items():
        labelled.add(
            partial(_region, parts, labelled.image.width, labelled.image.height), name, rejected, labelled.where
        )


def _part(row: _Shape, where: str) -> _Part:
    """The checked part of a shape.

    Raises:
        DataError: it is of another kind, rotated, incomplete, or its mask cannot be decoded.
    """
    kind, points = row.shape_type or _POLYGON, row.points
    least = {_RECTANGLE: 2, _POLYGON: _LEAST_POINTS, _MASK: 2}.get(kind)
    if least is None:
        raise DataError(f"a shape of type {kind!r} is not read", where=where, hint="use rectangles, polygons or masks")
    if len(points) < least:
        raise DataError(f"a {kind} has {len(points)} points", where=where)
    if kind == _RECTANGLE and (len(points) not in (2, _CORNERS) or not _is_upright(points)):
        raise DataError("its rectangle is rotated or has other points than corners", where=where)
    png = b""
    if kind == _MASK:
        try:
            png = b64decode(row.mask or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError("its mask is not base64", where=where) from error
        if len(png) > MAX_MASK_FILE_BYTES:
            raise DataError("its mask is too large", where=where)
    return _Part(points, kind, png, bool(row.difficult))


def _is_upright(points: Sequence[tuple[float, float]]) -> bool:
    """Whether points are the two or four corners of an upright box."""
    return all(len({round(point[axis], 2) for point in points}) <= len("xy") for axis in (0, 1))


def _region(parts: Sequence[_Part], width: int | None, height: int | None) -> RawRegion:
    """The region of an object: the box of its only rectangle, else the extent of its shapes; the union of its outlines.

    Raises:
        DataError: its masks need the size of the image, which is not stated.
    """
    boxes = [part for part in parts if part.kind == _RECTANGLE]
    outlines = [part for part in parts if part.kind != _RECTANGLE]
    is_difficult = any(part.is_difficult for part in parts)
    masks = [part for part in outlines if part.kind == _MASK]
    box = None
    if len(boxes) == 1 or not masks:
        points = np.array([point for part in (boxes if len(boxes) == 1 else parts) for point in part.points])
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        box = (left, top, right, bottom)
    if not masks:
        polygons = [[number for point in part.points for number in point] for part in outlines]
        return RawRegion(box, msgspec.json.encode(polygons) if polygons else None, is_crowd=is_difficult)
    if width is None or height is None:
        raise DataError("imageWidth or imageHeight is missing, so its mask has no place")
    return RawRegion(box, partial(_mask, tuple(outlines), width, height), is_crowd=is_difficult)


def _mask(outlines: Sequence[_Part], width: int, height: int) -> RLE:
    """The union of polygons and masks.

    Raises:
        DataError: a mask is damaged or does not fit its points or the image.
    """
    parts = []
    for part in outlines:
        if part.kind == _POLYGON:
            parts.append(polygons_to_rle([[number for point in part.points for number in point]], height, width))
            continue
        pixels = mask_pixels(part.png, "mask")
        left, top = (round(side) for side in part.points[0])
        tall, wide = pixels.shape
        last = tuple(round(side) for side in part.points[1])
        if (left + wide - 1, top + tall - 1) != last or min(left, top) < 0 or last[0] >= width or last[1] >= height:
            raise DataError(f"a mask of {wide} x {tall} pixels does not fit its points {part.points[:2]} or the image")
        whole = np.zeros((height, width), dtype=bool)
        whole[top : top + tall, left : left + wide] = pixels
        parts.append(encode_mask(whole))
    return union_masks(parts)


def _file_name(path: str) -> str:
    """The path of an image below the folder of images; labelme's is relative to the JSON file."""
    whole = PurePosixPath(path.replace("\\", "/"))
    if whole.is_absolute() or path[1:2] == ":":
        return whole.name
    parts = list(whole.parts)
    while parts and parts[0] == "..":
        parts.pop(0)
    return "/".join(parts)


SOURCE = Source(
    description="labelme's or X-AnyLabeling's JSON files, one per image, in a folder",
    read=read_labelme,
    settings=LabelToolSettings,
    files={"*": ()},
    sniff=sniff_labelme,
)
