"""OpenRef: a positive and a negative expression per image, with boxes in percent of the image.

A record is `{"image", "relation_type": "single" | "multi" | "none", "positive", "negative", "bbox_num", "proposal":
[{"x", "y", "width", "height", "original_width", "original_height"}, ...]}`, as Label Studio writes it: numbers are 0 to
100, `original_width` and `original_height` are pixels. The boxes are the target of the positive expression, which has
none if the relation type is `none`; the negative expression never has a target. Either may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import named_image
from refcli.data.sources.json_records import RowPlace, read_rows
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import decode_row, first_record_has, valid_side
from refcli.errors import DataError

RELATION_TYPES = ("single", "multi", "none")
_PERCENT = 100.0
_TOLERANCE = 0.5
"""Percent by which boxes may leave the image; further ones are not in percent."""


class _Proposal(msgspec.Struct):
    x: float
    y: float
    width: float
    height: float
    original_width: int
    original_height: int


class _Row(msgspec.Struct):
    image: str
    relation_type: str
    positive: str | None = None
    negative: str | None = None
    bbox_num: int | None = None
    proposal: list[msgspec.Raw] = []


_KEYS = KnownKeys("record", frozenset(_Row.__struct_fields__))
_PROPOSAL_KEYS = KnownKeys("proposal", frozenset(_Proposal.__struct_fields__), has_box=True)


def read_openref(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record for each of the two expressions of a row; see `Reader`.

    The kind of the positive expression is its relation type, that of the negative one `<relation type>_negative`.
    `files`: split -> file. A row that contradicts itself is a `broken_row`: boxes with the relation type `none`, none
    with another one, more or fewer than `bbox_num`, or numbers that are not percent.
    """
    log = KeyLog(", ".join(path.name for path in files.values()), problems)

    def records(row: _Row, place: RowPlace) -> list[RawRecord]:
        proposals = [
            decode_row(raw, _Proposal, where=place.where, problems=problems, needed=(), keys=(_PROPOSAL_KEYS, log))
            for raw in row.proposal
        ]
        _check(row, proposals, place.where)
        sides = {(one.original_width, one.original_height) for one in proposals}
        width, height = sides.pop() if sides else (None, None)
        image = named_image(row.image, dataset=dataset, width=valid_side(width), height=valid_side(height))
        regions = tuple(_region(one, place.where) for one in proposals)
        expressions = (
            ("positive", row.positive, regions, row.relation_type),
            ("negative", row.negative, (), f"{row.relation_type}_negative"),
        )
        return [
            RawRecord(place.split, image, (RawExpression(f"{place.number}/{name}", text),), targets, place.where, kind)
            for name, text, targets, kind in expressions
            if text
        ]

    yield from read_rows(files, _Row, _KEYS, records, problems)
    log.finish()


def _check(row: _Row, proposals: Sequence[_Proposal], where: str) -> None:
    if not row.positive and not row.negative:
        raise DataError("there is neither a positive nor a negative expression", where=where)
    if row.relation_type not in RELATION_TYPES:
        raise DataError(
            f"the relation_type is {row.relation_type!r}", where=where, hint="it is " + ", ".join(RELATION_TYPES)
        )
    if (row.relation_type == "none") == bool(proposals):
        raise DataError(f"the relation_type is {row.relation_type!r} with {len(proposals)} boxes", where=where)
    if row.bbox_num not in (None, len(proposals)):
        raise DataError(f"bbox_num is {row.bbox_num}, but there are {len(proposals)} boxes", where=where)
    if len({(one.original_width, one.original_height) for one in proposals}) > 1:
        raise DataError("its boxes are of images of different sizes", where=where)
    if not all(valid_side(side) for one in proposals for side in (one.original_width, one.original_height)):
        raise DataError("original_width or original_height is not positive", where=where)


def _region(box: _Proposal, where: str) -> RawRegion:
    """The region of a box in percent."""
    right, bottom = box.x + box.width, box.y + box.height
    if min(box.x, box.y) < -_TOLERANCE or max(right, bottom) > _PERCENT + _TOLERANCE:
        raise DataError(
            f"a box extends from {box.x:g}, {box.y:g} to {right:g}, {bottom:g}, beyond 100 percent", where=where
        )
    across, down = box.original_width / _PERCENT, box.original_height / _PERCENT
    return RawRegion((box.x * across, box.y * down, right * across, bottom * down))


def sniff_openref(path: Path) -> bool:
    """Whether a file starts with a record of OpenRef."""
    return first_record_has(path, b"relation_type", b"positive", b"proposal")


SOURCE = Source(
    description="OpenRef: JSON list with positive, negative, relation_type and proposal (boxes in percent)",
    read=read_openref,
    settings=Settings,
    files={"*": ()},
    sniff=sniff_openref,
)
