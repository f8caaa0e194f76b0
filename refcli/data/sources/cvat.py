"""CVAT's XML "for images 1.1": boxes, polygons and masks of every image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.data.reading.streams import text_start
from refcli.data.reading.xml_files import iterate_xml
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import ATTRIBUTES, KeyLog, KnownKeys, check_meaning, excerpt
from refcli.data.sources.labels import LabelledImage, LabelToolSettings, outlined_region
from refcli.data.sources.record import Problems, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, valid_side, whole_number
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask

_IMAGE, _TRACK, _TAG = "image", "track", "tag"
_SHAPES = _BOX, _POLYGON, _MASK = "box", "polygon", "mask"
_START = re.compile(rb"(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<annotations\s*>", re.DOTALL)
_NO_GROUP = "0"
_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_NO_SUBSET = ("", "default")


_IMAGE_KEYS = KnownKeys(
    "image", frozenset({"id", "name", "width", "height", "subset"}), frozenset({"task_id", "job_id", "chapter"})
)
_SHAPE_KEYS = KnownKeys(
    "shape",
    frozenset({"label", "xtl", "ytl", "xbr", "ybr", "points", "rle", "left", "top", "width", "height", "group_id",
               "rotation", "outside", ATTRIBUTES}),
    frozenset({"keyframe", "occluded", "source", "z_order", "score"}),
    has_box=True,
)  # fmt: skip


def read_cvat(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield the records of every image; see `Reader` and `labelled_records`.

    An image in a subset has its split; `default` and no subset stand for the split of the file. A box and a mask (or
    polygon) of one label that are alone in a group are one object. Occluded objects are objects like any others.

    Args:
        files: split -> file.
        settings: a `LabelToolSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_image`, `broken_shape` (also of a kind that is not read, such as an ellipse) and its
            consequences (see `LabelledImage.records`); `unread_tag` of a whole image; `unused_key`.

    Raises:
        DataError: the XML is broken, is an export of a video, or no image can be used.
    """
    assert isinstance(settings, LabelToolSettings)
    for split, path in files.items():
        log = KeyLog(path.name, problems)
        rejected, shapes = Rejections(problems, "broken_image"), Rejections(problems, "broken_shape")
        num_good = 0
        ids: set[str] = set()
        for number, element in enumerate(iterate_xml(path, (_IMAGE, _TRACK)), 1):
            where = f"{path.name}: image {element.get('id', number)}"
            if element.tag == _TRACK:
                raise DataError(
                    "this is an export of a video, with tracks",
                    where=str(path),
                    hint="export it as CVAT for images 1.1",
                )
            try:
                labelled = _image(element, split, dataset, settings, log, where)
            except DataError as error:
                rejected.add(error, where)
                continue
            if labelled.image_id in ids:  # tasks of one project may each count from 0
                labelled.image_id = f"{labelled.image_id}-{number}"
            ids.add(labelled.image_id)
            for index, shape in enumerate(element, 1):
                _add(labelled, shape, log, shapes, f"{where}, shape {index}")
            num_good += 1
            yield from labelled.records(settings, problems)
        if not num_good:
            rejected.raise_first()
            raise DataError("there is no image", where=str(path), hint="export it as CVAT for images 1.1")
        log.finish()


def sniff_cvat(path: Path) -> bool:
    """Whether a file starts as CVAT's XML does."""
    return _START.match(text_start(path)) is not None


def _image(
    element: Element, split: str, dataset: str, settings: LabelToolSettings, log: KeyLog, where: str
) -> LabelledImage:
    log.check(_IMAGE_KEYS, element.attrib, where)
    width, height = (valid_side(whole_number(element.get(side))) for side in ("width", "height"))
    if width is None or height is None:
        raise DataError("its width or height is missing", where=where)
    image = named_image(element.get("name", ""), dataset=dataset, width=width, height=height, origin=settings.images)
    subset = element.get("subset", "").strip()
    if subset.casefold() not in _NO_SUBSET:
        split = _SPLITS.get(subset.casefold(), subset)
    return LabelledImage(image, element.get("id") or image.names[0], split, where)


def _add(labelled: LabelledImage, shape: Element, log: KeyLog, rejected: Rejections, where: str) -> None:
    if shape.tag == _TAG:
        log.problems.add("unread_tag", where, excerpt(shape.get("label", "")))
        return
    group = shape.get("group_id", _NO_GROUP)
    labelled.add(
        partial(_region, shape, labelled, log, where),
        shape.get("label"),
        rejected,
        where,
        group=None if group == _NO_GROUP else group,
    )


def _region(shape: Element, labelled: LabelledImage, log: KeyLog, where: str) -> RawRegion:
    """The region of a shape.

    Raises:
        DataError: it is rotated, of another kind, or incomplete.
    """
    if shape.tag not in _SHAPES:
        raise DataError(
            f"a shape {excerpt(str(shape.tag))!r} is not read", where=where, hint="use " + ", ".join(_SHAPES)
        )
    attributes = {one.get("name", ""): one.text for one in shape.findall("attribute")}
    log.check(_SHAPE_KEYS, {**shape.attrib, ATTRIBUTES: attributes}, where)
    for key in ("rotation", "outside"):
        check_meaning(key, shape.get(key, "0"), _SHAPE_KEYS, where)
    if shape.tag == _BOX:
        left, top, right, bottom = (_number(shape.get(side), where) for side in ("xtl", "ytl", "xbr", "ybr"))
        return RawRegion((left, top, right, bottom))
    if shape.tag == _POLYGON:
        return outlined_region(_points(shape.get("points", ""), where), where)
    return RawRegion(None, _mask(shape, labelled, where))


def _number(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(f"{excerpt(text)!r} is not a number", where=where) from error


def _points(text: str, where: str) -> list[tuple[float, float]]:
    """The points of a polygon, written as `x,y;x,y;...`."""
    pairs = [pair.split(",") for pair in text.split(";")]
    if any(len(pair) != len("xy") for pair in pairs):
        raise DataError(f"the points are not x,y;x,y;... but {excerpt(text)!r}", where=where)
    return [(_number(x, where), _number(y, where)) for x, y in pairs]


def _mask(shape: Element, labelled: LabelledImage, where: str) -> partial[RLE]:
    names = ("left", "top", "width", "height")
    place = [whole_number(shape.get(name, "").removesuffix(".0")) for name in names]
    runs = [whole_number(run.strip()) for run in shape.get("rle", "").split(",")]
    width, height = labelled.image.width or 0, labelled.image.height or 0
    left, top, wide, tall = (0 if number is None else number for number in place)
    if None in place or None in runs or left + wide > width or top + tall > height:
        raise DataError("its mask has invalid run lengths or does not fit the image", where=where)
    lengths = [run or 0 for run in runs]
    if sum(lengths) != wide * tall or not wide * tall:
        raise DataError(f"the run lengths of its mask do not add up to {wide} x {tall} pixels", where=where)
    return partial(_decode, tuple(lengths), (left, top, wide, tall), width, height)


def _decode(lengths: tuple[int, ...], place: tuple[int, int, int, int], width: int, height: int) -> RLE:
    """The mask of run lengths within (left, top, width, height), row by row, background first."""
    left, top, wide, tall = place
    part = np.zeros(wide * tall, dtype=bool)
    ends = np.cumsum(lengths)
    for start, end in list(pairwise(ends.tolist()))[::2]:
        part[start:end] = True
    pixels = np.zeros((height, width), dtype=bool)
    pixels[top : top + tall, left : left + wide] = part.reshape(tall, wide)
    return encode_mask(pixels)


SOURCE = Source(
    description='CVAT\'s XML "for images 1.1": boxes, polygons and masks',
    read=read_cvat,
    settings=LabelToolSettings,
    files={"*": ()},
    sniff=sniff_cvat,
)
