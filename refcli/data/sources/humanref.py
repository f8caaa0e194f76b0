"""HumanRef: expressions about any number of people, with boxes and masks (Jiang et al., RexSeek, 2025).

A line is `{"id", "image_name", "domain", "sub_domain", "referring", "answer_boxes": [[x1, y1, x2, y2], ...],
"answer_segmentations": [run lengths, ...], "candidate_boxes"}`. The domain is the kind of the expression; in the domain
`rejection`, and only there, an expression has no target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import named_image
from refcli.data.sources.json_records import RowPlace, mask_sides, pixel_regions, read_rows
from refcli.data.sources.known_keys import KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, Source
from refcli.data.sources.rows import first_record_has
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

REJECTION = "rejection"
"""The domain of expressions without a target."""


class _Row(msgspec.Struct):
    id: int | str
    image_name: str
    domain: str
    referring: str
    answer_boxes: list[BoxXYXY]
    answer_segmentations: list[msgspec.Raw] | None = None


_KEYS = KnownKeys(
    "line",
    frozenset(_Row.__struct_fields__),
    frozenset({"sub_domain", "candidate_boxes"}),
    has_box=True,
    has_corners=True,
)


def read_humanref(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per line; see `Reader`. `files`: split -> file.

    A rejection with boxes and any other expression without boxes contradict themselves; each is a `broken_line`.
    """

    def records(row: _Row, place: RowPlace) -> tuple[RawRecord]:
        if (row.domain == REJECTION) == bool(row.answer_boxes):
            boxes = f"{len(row.answer_boxes)} answer_boxes"
            raise DataError(f"the domain is {row.domain!r}, but there are {boxes}", where=place.where)
        masks = row.answer_segmentations or None
        width, height = mask_sides(masks or (), place.where)
        image = named_image(row.image_name, dataset=dataset, width=width, height=height)
        regions = pixel_regions(row.answer_boxes, masks, place.where)
        expression = RawExpression(str(row.id), row.referring)
        return (RawRecord(place.split, image, (expression,), regions, place.where, row.domain),)

    return read_rows(files, _Row, _KEYS, records, problems)


def sniff_humanref(path: Path) -> bool:
    """Whether a file starts with a line of HumanRef."""
    return first_record_has(path, b"image_name", b"domain", b"referring", b"answer_boxes")


SOURCE = Source(
    description="HumanRef: annotations.jsonl with referring, answer_boxes and answer_segmentations",
    read=read_humanref,
    settings=Settings,
    files={"*": ()},
    sniff=sniff_humanref,
)
