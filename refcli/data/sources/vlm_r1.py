"""VLM-R1's `rec_jsons_processed`: one JSON list per split, with an expression and its box in every row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import read_json
from refcli.data.reading.streams import text_start
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row, valid_side, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

_ROW = KnownKeys(
    "row",
    frozenset({"id", "image", "width", "height", "normal_caption", "bbox_list", "solution", "original_id"}),
    frozenset({"dataset_name", "area", "iscrowd", "image_id", "category_id", "text_type", "problem",
               "normalized_solution"}),
    has_box=True,
    has_corners=True,
)  # fmt: skip
_FAR_EDGE = 1.0
"""Pixels by which `solution` exceeds the box at its right and bottom edge: VLM-R1 gives the last pixel."""
_TOLERANCE = 1.0
"""Pixels by which a rounded solution may differ."""
_FIRST_ROW = re.compile(rb"\[\s*\{")


class VlmR1Settings(Settings):
    """Options of the reader of VLM-R1's lists: none."""


class VlmR1Row(msgspec.Struct):
    """One expression and its boxes."""

    id: int | str
    image: str
    normal_caption: str
    """The expression; `problem` is the prompt around it."""
    bbox_list: list[BoxXYXY]
    """In pixels, with the far edges of COCO's boxes."""
    width: int | None = None
    height: int | None = None
    solution: BoxXYXY | None = None
    """The first box with its far edges moved out by one pixel; only compared."""
    original_id: int | str | None = None
    """The annotation's id in COCO."""


def read_vlm_r1(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per row; see `Reader`.

    Args:
        files: split -> file.
        settings: a `VlmR1Settings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects omitted rows, `broken_row` (also those without a box). Kept are `solution_differs_from_box`,
            with their `bbox_list`, and `repeated_id`, with the number of the row behind the id.

    Raises:
        DataError: no row can be used.
    """
    for split, path in files.items():
        keys = KeyLog(path.name, problems)
        rejected = Rejections(problems)
        seen: set[str] = set()
        for index, raw in enumerate(read_json(path, list[msgspec.Raw])):
            where = f"{path.name}: row {index}"
            try:
                row = decode_row(raw, VlmR1Row, where=where, problems=problems, needed=(), keys=(_ROW, keys))
                record = _record(row, split, dataset, where)
            except DataError as error:
                rejected.add(error, where)
                continue
            if row.solution is not None and not _agrees(row.bbox_list[0], row.solution):
                problems.add("solution_differs_from_box", where, f"{list(row.solution)}, {list(row.bbox_list[0])}")
            (expression,) = record.expressions
            if expression.id in seen:
                problems.add("repeated_id", where, expression.id)
                expression = expression._replace(id=f"{expression.id}-{index}")
            seen.add(expression.id)
            yield replace(record, expressions=(expression,))
        keys.finish()
        if not seen:
            rejected.raise_first()


def sniff_vlm_r1(path: Path) -> bool:
    """Whether a file is a list of rows with a `normal_caption` and a `bbox_list`."""
    start = text_start(path)
    return _FIRST_ROW.match(start) is not None and b'"normal_caption"' in start and b'"bbox_list"' in start


def _record(row: VlmR1Row, split: str, dataset: str, where: str) -> RawRecord:
    if not row.bbox_list:
        raise DataError("bbox_list is empty", where=where, hint="this format cannot state that there is no target")
    image = named_image(row.image, dataset=dataset, width=valid_side(row.width), height=valid_side(row.height))
    number = whole_number(row.original_id)
    is_single = number is not None and len(row.bbox_list) == 1 and image.key.startswith("coco:")
    source_id = f"coco:{number}" if is_single else None
    regions = tuple(RawRegion(box, None, source_id) for box in row.bbox_list)
    return RawRecord(split, image, (RawExpression(str(row.id), row.normal_caption),), regions, where)


def _agrees(box: Sequence[float], solution: Sequence[float]) -> bool:
    left, top, right, bottom = box
    expected = (left, top, right + _FAR_EDGE, bottom + _FAR_EDGE)
    return all(abs(a - b) <= _TOLERANCE for a, b in zip(expected, solution, strict=True))


SOURCE = Source(
    description="VLM-R1's rec_jsons_processed: a JSON list with normal_caption and bbox_list",
    read=read_vlm_r1,
    settings=VlmR1Settings,
    files={"*": ()},
    sniff=sniff_vlm_r1,
)
