"""GSEval, the benchmark of GroundingSuite: JSON lines with one box and one mask each (Hu et al., ICCV 2025).

A line is `{"idx", "image_path", "class_id", "label", "caption", "box": [x1, y1, x2, y2], "segmentation": {"size",
"counts"}}`; the caption is the expression and the images are COCO's unlabeled2017. The file does not name the
classes, so the kinds are `class_1` to `class_4`; by their labels they are stuff, parts, several objects and one object.
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
from refcli.geometry.boxes import BoxXYXY


class _Row(msgspec.Struct):
    idx: int
    image_path: str
    class_id: int
    caption: str
    box: BoxXYXY
    segmentation: msgspec.Raw


_KEYS = KnownKeys("line", frozenset(_Row.__struct_fields__), frozenset({"label"}), has_box=True, has_corners=True)


def read_gseval(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per line; see `Reader`. `files`: split -> file."""

    def records(row: _Row, place: RowPlace) -> tuple[RawRecord]:
        masks = [row.segmentation]
        width, height = mask_sides(masks, place.where)
        image = named_image(row.image_path, dataset=dataset, width=width, height=height, origin="coco")
        regions = pixel_regions([row.box], masks, place.where)
        expression = RawExpression(str(row.idx), row.caption)
        return (RawRecord(place.split, image, (expression,), regions, place.where, f"class_{row.class_id}"),)

    return read_rows(files, _Row, _KEYS, records, problems)


def sniff_gseval(path: Path) -> bool:
    """Whether a file starts with a line of GSEval."""
    return first_record_has(path, b"idx", b"image_path", b"class_id", b"caption")


SOURCE = Source(
    description="GSEval (GroundingSuite): JSON lines with caption, box and segmentation",
    read=read_gseval,
    settings=Settings,
    files={"*": ()},
    sniff=sniff_gseval,
)
