"""Custom Parquet files: rows mapped to records by the column names in the settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from refcli.data.sources.known_keys import KnownKeys, excerpt
from refcli.data.sources.parquet.layouts import Layout
from refcli.data.sources.parquet.row import ParquetSettings, RowContext, box_xyxy, segmentation
from refcli.data.sources.record import RawExpression, RawRecord, RawRegion
from refcli.errors import DataError, UsageError
from refcli.tables import did_you_mean

EXAMPLE = "--set columns.image=image --set columns.expression=caption --set columns.box=bbox --set box_format=xyxy"


class _MappedRow(msgspec.Struct):
    expression: str | list[str]
    file_name: str | None = None
    box: list[Any] | None = None
    mask: Any = None
    no_target: bool | None = None
    width: int | None = None
    height: int | None = None
    id: str | int | None = None
    kind: str | int | None = None


def mapped_layout(settings: ParquetSettings, columns: Sequence[str], where: str) -> Layout:
    """The layout that the settings describe.

    Args:
        settings: with `columns.expression`.
        columns: of the file.
        where: the file.

    Raises:
        UsageError: the settings are incomplete, or name a column that the file does not have.
    """
    names = {field: name for field, name in settings.columns.model_dump().items() if name is not None}
    for field, name in names.items():
        if name not in columns:
            raise UsageError(
                f"there is no column {name!r}", where=f"{where}: columns.{field}", hint=did_you_mean(name, columns)
            )
    if not {"image", "file_name"} & names.keys():
        raise UsageError("no column of images is named", where="columns.image", hint=EXAMPLE)
    if not {"box", "mask", "no_target"} & names.keys():
        raise UsageError("no column of boxes or masks is named", where="columns.box", hint=EXAMPLE)
    if "box" in names and settings.box_format is None:
        raise UsageError(
            "the format of the boxes is not given",
            where="box_format",
            hint="--set box_format=xyxy (two corners) or --set box_format=xywh (left, top, width, height), in pixels",
        )
    return Layout(
        "columns",
        frozenset(names.values()),
        _MappedRow,
        KnownKeys(
            "column",
            frozenset(names.values()),
            has_box="box" in names,
            has_corners=settings.box_format == "xyxy",
        ),
        _records,
        image=names.get("image"),
        id=names.get("id"),
        fields={field: name for field, name in names.items() if field in _MappedRow.__struct_fields__},
    )


def _records(row: _MappedRow, at: RowContext) -> Iterable[RawRecord]:
    regions = _regions(row, at)
    texts = [row.expression] if isinstance(row.expression, str) else row.expression
    name = f"{at.split}/{at.number}" if row.id is None else str(row.id)
    ids = [name] if isinstance(row.expression, str) else [f"{name}/{number}" for number in range(len(texts))]
    image = at.image(row.file_name, width=row.width, height=row.height)
    kind = None if row.kind is None else str(row.kind)
    yield at.record(image, list(map(RawExpression, ids, texts)), regions, kind=kind)


def _regions(row: _MappedRow, at: RowContext) -> list[RawRegion]:
    """The regions of a row: as many as it has boxes, else as it has masks.

    Raises:
        DataError: it has neither and is not marked as having no target, or has both and is marked.
    """
    boxes = [] if not row.box else row.box if isinstance(row.box[0], list) else [row.box]
    is_list_of_masks = isinstance(row.mask, list) and all(one is None or isinstance(one, dict) for one in row.mask)
    masks = row.mask or [] if is_list_of_masks else [] if row.mask in (None, "") else [row.mask]
    if row.no_target:
        if boxes or masks:
            raise DataError("the row is marked as having no target, but has a box or mask", where=at.where)
        return []
    if not boxes and not masks:
        raise DataError(
            "the row has no box and no mask",
            where=at.where,
            hint="for rows without a target: --set columns.no_target=COLUMN",
        )
    if boxes and masks and len(boxes) != len(masks):
        raise DataError(f"there are {len(boxes)} boxes and {len(masks)} masks: {excerpt(row.mask)}", where=at.where)
    form = at.settings.box_format or "xyxy"
    return [
        RawRegion(
            box_xyxy(boxes[number], form, at.where) if boxes else None,
            segmentation(masks[number]) if masks else None,
        )
        for number in range(len(boxes or masks))
    ]
