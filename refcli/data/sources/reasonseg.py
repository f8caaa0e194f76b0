"""ReasonSeg: questions that need reasoning, with polygons and ignored regions (Lai et al., LISA, CVPR 2024).

A split is a folder (or archive) of `<name>.jpg` beside `<name>.json`: `{"text": [...], "is_sentence", "shapes":
[{"label": "target" | "ignore" | "flag", "points": [[x, y], ...]}]}`, in UTF-8 or Windows-1252. All texts refer to the
same target, the pixels of `target` polygons; no metric counts those of `ignore`. The polygons are drawn as LISA's
`get_mask_from_json` does: filled with a one-pixel outline, the largest first, so that smaller ones overwrite it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
from jaxtyping import Int32, UInt8

from refcli.config.schema import Settings
from refcli.data.reading.archives import list_files, read_file
from refcli.data.reading.images import probe
from refcli.data.reading.json_files import parse_json
from refcli.data.reading.streams import invalid_utf8
from refcli.data.sources.image_names import own_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row
from refcli.errors import DataError, ImageError
from refcli.geometry.masks import encode_mask

MAX_ANNOTATION_BYTES = 64 << 20
MAX_IMAGE_BYTES = 200_000_000
TARGET, IGNORED = 1, 255
"""Values of a label map; 0 is the background."""
_MAX_SHAPES = 1_000
"""Of one image; each is drawn twice at the image's full size."""
_FLAG = "flag"
"""The label of polygons without meaning."""
_REACH = 10
"""Largest distance of a point from the image, in image sides; OpenCV's drawing overflows far outside."""
_POLYGON = "polygon"
_LEGACY_ENCODING = "cp1252"


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str = _POLYGON


class _Annotation(msgspec.Struct):
    text: list[str]
    shapes: list[msgspec.Raw]
    is_sentence: bool | None = None


_KEYS = KnownKeys("annotation", frozenset(_Annotation.__struct_fields__))
_SHAPE_KEYS = KnownKeys(
    "shape",
    frozenset(_Shape.__struct_fields__),
    frozenset({"labels", "group_id", "group_ids", "flags", "image_name"}),
)


def read_reasonseg(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per annotation file, in the order of their names; see `Reader`.

    The kind of an expression is `sentence` or `phrase` (`is_sentence`).

    Args:
        files: split -> a folder, zip or tar with the images and their annotations.
        settings: none.
        dataset: prefix of the keys of images.
        problems: collects `broken_file` (an annotation that cannot be used, or without its image), `unknown_label` (a
            label other than target, ignore and flag counts as target, as in LISA), `unused_key`.
    """
    for split, source in files.items():
        annotations, images = list_files(source, ".json"), list_files(source, ".jpg")
        reading = _Reading(split, source, dataset, KeyLog(source.name, problems))
        rejected = Rejections(problems, "broken_file")
        num_good = 0
        for name, file in annotations.items():
            where = f"{_place(source, file)}: annotation"
            try:
                if name not in images:
                    raise DataError(f"there is no {name}.jpg beside it", where=where)
                record = reading.record(file, images[name], where)
            except DataError as error:
                rejected.add(error, where)
                continue
            except ImageError as error:
                rejected.add(DataError(error.message, where=where, hint=error.hint), where)
                continue
            num_good += 1
            yield record
        if not num_good:
            rejected.raise_first()
        reading.keys.finish()


def label_map(
    polygons: Sequence[tuple[int, Int32[np.ndarray, "points 2"]]], height: int, width: int
) -> UInt8[np.ndarray, "height width"]:
    """Draw polygons of one value each, the largest first; of equally large ones, the last first."""
    areas = []
    for _, points in polygons:
        canvas = np.zeros((height, width), dtype=np.uint8)
        _draw(canvas, points, TARGET)
        areas.append(int(canvas.sum()))
    drawn = np.zeros((height, width), dtype=np.uint8)
    for index in np.argsort(areas, kind="stable")[::-1]:
        value, points = polygons[index]
        _draw(drawn, points, value)
    return drawn


def sniff_reasonseg(path: Path) -> bool:
    """Whether this is a folder or archive of images with annotations that have `text` and `shapes`."""
    try:
        annotations, images = list_files(path, ".json"), list_files(path, ".jpg")
        first = next(file for name, file in annotations.items() if name in images)
        text = _utf8(read_file(path, first, max_bytes=MAX_ANNOTATION_BYTES), first)
        keys = parse_json(text, dict[str, msgspec.Raw], where=first).keys()
    except (DataError, OSError, StopIteration):
        return False
    return {"text", "shapes"} <= keys


class _Reading:
    """The state of one split while it is read."""

    def __init__(self, split: str, source: Path, dataset: str, keys: KeyLog) -> None:
        self._split, self._source, self._dataset, self.keys = split, source, dataset, keys

    def record(self, file: str, image_file: str, where: str) -> RawRecord:
        """The record of one annotation file.

        Raises:
            DataError: it cannot be used, or has no target.
            ImageError: its image cannot be read.
        """
        text = _utf8(read_file(self._source, file, max_bytes=MAX_ANNOTATION_BYTES), where)
        row = decode_row(
            text,
            _Annotation,
            where=where,
            problems=self.keys.problems,
            needed=("is_sentence",),
            keys=(_KEYS, self.keys),
        )
        if not row.text:
            raise DataError("there is no text", where=where)
        width, height = self._image_size(image_file)
        drawn = label_map(list(self._polygons(row.shapes, height, width, where)), height, width)
        if not (drawn == TARGET).any():
            raise DataError("no pixel is in a target polygon", where=where)
        kinds = {True: "sentence", False: "phrase"}
        stem = Path(file).stem
        return RawRecord(
            split=self._split,
            image=own_image(_place(self._source, image_file), dataset=self._dataset, width=width, height=height),
            expressions=tuple(RawExpression(f"{stem}/{number}", one) for number, one in enumerate(row.text)),
            regions=(RawRegion(None, encode_mask(drawn == TARGET)),),
            where=where,
            kind=None if row.is_sentence is None else kinds[row.is_sentence],
            ignored=encode_mask(drawn == IGNORED) if (drawn == IGNORED).any() else None,
        )

    def _image_size(self, file: str) -> tuple[int, int]:
        """(width, height) as displayed."""
        if self._source.is_dir():
            return probe(self._source / file).size
        return probe(read_file(self._source, file, max_bytes=MAX_IMAGE_BYTES)).size

    def _polygons(
        self, shapes: Sequence[msgspec.Raw], height: int, width: int, where: str
    ) -> Iterator[tuple[int, Int32[np.ndarray, "points 2"]]]:
        """The value and the points of every polygon but flags."""
        if len(shapes) > _MAX_SHAPES:
            raise DataError(f"there are {len(shapes):,} shapes, more than {_MAX_SHAPES:,}", where=where)
        for number, raw in enumerate(shapes, 1):
            place = f"{where}, shape {number}"
            shape = decode_row(
                raw,
                _Shape,
                where=place,
                problems=self.keys.problems,
                needed=("shape_type",),
                keys=(_SHAPE_KEYS, self.keys),
            )
            label = shape.label.lower()
            if label == _FLAG:
                continue
            points = np.asarray(shape.points, dtype=np.float64).reshape(-1, 2)
            if shape.shape_type != _POLYGON or not len(points):
                raise DataError(f"the shape is a {shape.shape_type} of {len(points)} points", where=place)
            if not np.isfinite(points).all() or np.abs(points).max() > _REACH * max(height, width):
                raise DataError(f"the polygon lies far outside the image of {width} x {height} pixels", where=place)
            is_ignored = "ignore" in label
            if not is_ignored and label != "target":
                self.keys.problems.add("unknown_label", place, f"{shape.label!r} counts as target")
            yield IGNORED if is_ignored else TARGET, points.astype(np.int32)


def _draw(canvas: UInt8[np.ndarray, "height width"], points: Int32[np.ndarray, "points 2"], value: int) -> None:
    cv2.polylines(canvas, [points], isClosed=True, color=value, thickness=1)
    cv2.fillPoly(canvas, [points], color=value)


def _place(source: Path, file: str) -> str:
    """The path of a file below the folder of all splits."""
    return f"{source.name}/{file}" if source.is_dir() else file


def _utf8(text: bytes, where: str) -> bytes:
    """The text in UTF-8; a text that is not is Windows-1252.

    Raises:
        DataError: it is neither.
    """
    if invalid_utf8(text) is None:
        return text
    try:
        return text.decode(_LEGACY_ENCODING).encode()
    except UnicodeDecodeError as error:
        raise DataError("the text is neither UTF-8 nor Windows-1252", where=where, hint="save it as UTF-8") from error


SOURCE = Source(
    description="ReasonSeg: a folder of <name>.jpg and <name>.json with text and shapes",
    read=read_reasonseg,
    settings=Settings,
    files={"*": ()},
    sniff=sniff_reasonseg,
)
