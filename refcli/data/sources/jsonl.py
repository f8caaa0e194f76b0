"""A user's own data: one JSON object per line, with an image, its expressions and their target.

    {"image": "a.jpg", "expression": "the red cup", "box": [10, 20, 110, 220]}
    {"image": "a.jpg", "expressions": ["both cups", "the two cups"], "boxes": [[10, 20, 110, 220], [150, 20, 250, 220]]}
    {"image": "a.jpg", "expression": "the fork", "no_target": true}

The image: `image` is its path below one of the image folders (COCO's names of 2014 are recognised). Optional:
`width` and `height` in pixels (null, -1 or 0: unknown); `image_id`, which marks files of several names as the same
image ("coco:581857", or any other name).

The text: `expression`, or a list of `expressions` for the same target.

The target, exactly one of:

- `box`: [x1, y1, x2, y2], or `box_xywh`: [x, y, width, height]; optional `segmentation`.
- `boxes` or `boxes_xywh`: a list of such boxes, at least one; optional `segmentation`: a list of the same length,
  with null for no mask (one polygon, a list of numbers, may stand for a list of polygons).
- `segmentation` alone: the box is its extent.
- `no_target`: true, if the expression has no target in the image; an empty list of boxes may stand beside it. A line
  with no box and no `no_target` is broken: a missing annotation does not mean "no target".

Boxes are in pixels of the image, counted from 0 at the outer edge of the first one, the far edge exclusive: a box
of a whole image is [0, 0, width, height]. A segmentation is COCO's: polygons [[x, y, x, y, ...], ...], a run-length
object {"size": [height, width], "counts": ...}, or a list of these.

Also optional: `id` (unique in its split; by default the file's split and the line's number), `split` (by default that
of the file), `kind` (the kind of expression; scores can be split by it).

A line that breaks a rule or has an unknown key is reported as `broken_line`; the others are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import parse_json
from refcli.data.sources.coco.instances import BoxXYWH, xywh_to_xyxy
from refcli.data.sources.image_names import ImageOrigin, named_image
from refcli.data.sources.known_keys import KnownKeys, check_meaning, decoded, excerpt
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import are_fractions, decode_row, read_json_lines, some_line_has, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY
from refcli.tables import did_you_mean


class JsonlSettings(Settings):
    """Options of the reader of JSON lines."""

    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a name starts with COCO_train2014_, or `image_id` states it;
    `coco`: also where it is a number of twelve digits; `own`: COCO only where `image_id` states it."""


class _Line(msgspec.Struct):
    image: str
    expression: str | None = None
    expressions: list[str] | None = None
    box: BoxXYXY | None = None
    box_xywh: BoxXYWH | None = None
    boxes: list[BoxXYXY] | None = None
    boxes_xywh: list[BoxXYWH] | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    no_target: bool = False
    width: int | None = None
    height: int | None = None
    image_id: str | int | None = None
    id: str | int | None = None
    split: str | None = None
    kind: str | None = None


KEYS = _Line.__struct_fields__
"""Every key of the format."""
_LINE_KEYS = KnownKeys("line", frozenset(KEYS), has_box=True, has_corners=True)
UNKNOWN_SIDES = (-1, 0)
"""Values that some tools write for an unknown width or height."""
_BOX_KEYS = ("box", "box_xywh", "boxes", "boxes_xywh")


def read_jsonl(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per line; see `Reader`.

    Args:
        files: split -> file; a line's own split takes precedence.
        settings: a `JsonlSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_line`, and `unreadable_value` (a size or kind; the line is used).

    Duplicate ids are found by 64-bit hashes of the given ids; ids made of line numbers cannot repeat. A given id that
    equals the id made of an earlier line's number is found when the split is written.
    """
    assert isinstance(settings, JsonlSettings)
    given: set[int] = set()
    for role, path in files.items():

        def parse(line: bytes, number: int, where: str, role: str = role) -> RawRecord:
            row = _parse_line(line, where, problems)
            record = _record(row, f"{role}/{number}", role, where, dataset, settings.images)
            if row.id is not None or given:
                ids = {hash((record.split, expression.id)): expression.id for expression in record.expressions}
                for repeated in ids.keys() & given:
                    raise DataError(
                        f"the id {ids[repeated]!r} was already given",
                        where=where,
                        hint="give each line a different id",
                    )
                if row.id is not None:
                    given.update(ids)
            return record

        yield from read_json_lines(path, parse, problems)


def sniff_jsonl(path: Path) -> bool:
    """Whether a file starts with lines that have an image and an expression and are not predictions."""
    has_text = some_line_has(path, b"image", b"expression") or some_line_has(path, b"image", b"expressions")
    return has_text and not some_line_has(path, b"schema")


def _parse_line(line: bytes, where: str, problems: Problems) -> _Line:
    keys = parse_json(line, dict[str, msgspec.Raw], where=where)
    for key in keys:
        if key not in KEYS:
            check_meaning(key, decoded(keys[key]), _LINE_KEYS, where)
            raise DataError(
                f"the key {excerpt(key)!r} is unknown",
                where=where,
                hint=did_you_mean(key, KEYS),
            )
    needed = [key for key in KEYS if key not in ("width", "height", "kind")]
    return decode_row(line, _Line, where=where, problems=problems, needed=needed)


def _record(
    row: _Line, default_id: str, default_split: str, where: str, dataset: str, origin: ImageOrigin
) -> RawRecord:
    return RawRecord(
        split=_named(row.split, default_split, "split", where),
        image=_image(row, dataset, origin, where),
        expressions=_expressions(row, default_id, where),
        regions=_regions(row, where),
        where=where,
        kind=row.kind,
    )


def _image(row: _Line, dataset: str, origin: ImageOrigin, where: str) -> RawImage:
    if not row.image.strip():
        raise DataError("image is empty", where=where)
    for key, side in (("width", row.width), ("height", row.height)):
        if side not in (None, *UNKNOWN_SIDES) and valid_side(side) is None:
            raise DataError(f"{key} is {excerpt(side)}", where=where, hint="give it in pixels, at least 1")
    image = named_image(
        row.image, dataset=dataset, width=valid_side(row.width), height=valid_side(row.height), origin=origin
    )
    if row.image_id is None:
        return image
    key = _named(str(row.image_id), "", "image_id", where)
    return RawImage(key if ":" in key else f"{dataset}:{key}", image.names, image.width, image.height)


def _expressions(row: _Line, default_id: str, where: str) -> tuple[RawExpression, ...]:
    identity = _named(None if row.id is None else str(row.id), default_id, "id", where)
    if (row.expression is None) == (row.expressions is None):
        raise DataError("a line needs either expression or expressions", where=where)
    if row.expression is not None:
        return (RawExpression(identity, row.expression),)
    if not row.expressions:
        raise DataError("expressions is empty", where=where)
    return tuple(RawExpression(f"{identity}/{number}", text) for number, text in enumerate(row.expressions))


def _regions(row: _Line, where: str) -> tuple[RawRegion, ...]:
    given = [key for key in _BOX_KEYS if getattr(row, key) is not None]
    has_segmentation = bytes(row.segmentation) != b"null"
    if len(given) > 1:
        raise DataError(f"{given[0]} and {given[1]} are both given", where=where, hint="give one of them")
    boxes = _boxes(row)
    if row.no_target:
        if boxes or has_segmentation:
            raise DataError("no_target is true, but there is a target", where=where)
        return ()
    if not given and has_segmentation:
        return (RawRegion(None, bytes(row.segmentation)),)
    if not boxes:
        raise DataError("there is no box", where=where, hint='if the expression has no target, write "no_target": true')
    if are_fractions(boxes):
        raise DataError(f"{given[0]} is in fractions of the image", where=where, hint="give it in pixels")
    return tuple(
        RawRegion(box, mask) for box, mask in zip(boxes, _masks(row, given[0], len(boxes), where), strict=True)
    )


def _boxes(row: _Line) -> list[BoxXYXY]:
    if row.box is not None:
        return [row.box]
    if row.box_xywh is not None:
        return [xywh_to_xyxy(row.box_xywh)]
    return row.boxes or [xywh_to_xyxy(box) for box in row.boxes_xywh or ()]


def _masks(row: _Line, key: str, count: int, where: str) -> list[bytes | None]:
    segmentation = bytes(row.segmentation)
    if segmentation == b"null":
        return [None] * count
    if key in ("box", "box_xywh") or (count == 1 and (segmentation.startswith(b"{") or _is_polygon(segmentation))):
        return [segmentation]
    parts = [] if segmentation.startswith(b"{") else parse_json(segmentation, list[msgspec.Raw], where=where)
    if count == 1 and len(parts) > 1 and all(map(_is_polygon, parts)):
        return [segmentation]
    if len(parts) != count or _is_polygon(segmentation):
        boxes = "is 1 box" if count == 1 else f"are {count} boxes"
        raise DataError(
            f"there {boxes} but {_how_many(segmentation, parts)}",
            where=where,
            hint=f"with {key}, segmentation is a list of the same length, with null for no mask",
        )
    return [None if bytes(part) == b"null" else bytes(part) for part in parts]


def _how_many(segmentation: bytes, parts: list[msgspec.Raw]) -> str:
    if segmentation.startswith(b"{"):
        return "one mask for all"
    return "one polygon" if _is_polygon(segmentation) else f"{len(parts)} segmentations"


def _is_polygon(part: msgspec.Raw | bytes) -> bool:
    """Whether a part of a segmentation is a single polygon, a list of numbers."""
    try:
        return bool(msgspec.json.decode(part, type=list[float]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _named(value: str | None, default: str, key: str, where: str) -> str:
    if value is None:
        return default
    if not value.strip():
        raise DataError(f"{key} is empty", where=where)
    return value.strip()


SOURCE = Source(
    description='custom JSON lines: {"image": ..., "expression": ..., "box": [x1, y1, x2, y2]}',
    read=read_jsonl,
    settings=JsonlSettings,
    files={"*": ()},
    sniff=sniff_jsonl,
)
