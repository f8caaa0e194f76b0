"""Data sets whose files are JSON lines or one JSON list: every row is decoded, checked and mapped to records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawRecord, RawRegion
from refcli.data.sources.rows import Row, are_fractions, decode_row, read_json_rows, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY


class RowPlace(NamedTuple):
    """The place of a row."""

    split: str
    number: int
    """Of the line or of the record in the list, from 1."""
    where: str
    """File and row, for messages."""


class _Mask(msgspec.Struct):
    size: tuple[int, int]


def read_rows(
    files: Mapping[str, Path],
    kind: type[Row],
    keys: KnownKeys,
    records_of: Callable[[Row, RowPlace], Collection[RawRecord]],
    problems: Problems,
    *,
    are_lists_by_split: bool = False,
) -> Iterator[RawRecord]:
    """Yield the records of all rows, in file order.

    Args:
        files: split -> file.
        kind: the shape of a row. A row without a required field, or with an unreadable value, is left out.
        keys: the known keys of a row.
        records_of: the records of a row; raises DataError for a row that cannot be used.
        problems: collects `broken_line` or `broken_row` (also for an id that an earlier row of the file has), and
            `unused_key`.
        are_lists_by_split: a file may also be one JSON object of lists, of which that of its split is read.

    Raises:
        DataError: a file is damaged, has no list of the split, or none of its rows can be used.
    """
    for split, path in files.items():
        log = KeyLog(path.name, problems)
        ids: set[int] = set()

        def records(
            text: bytes, number: int, where: str, split: str = split, log: KeyLog = log, ids: set[int] = ids
        ) -> Collection[RawRecord]:
            row = decode_row(
                text, kind, where=where, problems=problems, needed=kind.__struct_fields__, keys=(keys, log)
            )
            found = records_of(row, RowPlace(split, number, where))
            own = {hash(one.id): one.id for record in found for one in record.expressions}
            for repeated in own.keys() & ids:
                raise DataError(f"the id {own[repeated]!r} was already given", where=where)
            ids.update(own)
            return found

        member = split if are_lists_by_split else None
        for found in read_json_rows(path, records, problems, member=member):
            yield from found
        log.finish()


def pixel_regions(
    boxes_xyxy: Sequence[BoxXYXY], masks: Sequence[msgspec.Raw] | None, where: str
) -> tuple[RawRegion, ...]:
    """One region per box.

    Args:
        boxes_xyxy: in pixels.
        masks: the segmentation of each box (null: none), or None if there are none at all.
        where: file and row, for messages.

    Raises:
        DataError: there are more or fewer masks than boxes, or the boxes are in fractions of the image.
    """
    if are_fractions(boxes_xyxy):
        raise DataError("the boxes are in fractions of the image", where=where, hint="give them in pixels")
    if masks is None:
        return tuple(RawRegion(box) for box in boxes_xyxy)
    if len(masks) != len(boxes_xyxy):
        raise DataError(f"there are {len(boxes_xyxy)} boxes and {len(masks)} masks", where=where)
    return tuple(
        RawRegion(box, None if bytes(mask) == b"null" else bytes(mask))
        for box, mask in zip(boxes_xyxy, masks, strict=True)
    )


def mask_sides(masks: Sequence[msgspec.Raw], where: str) -> tuple[int | None, int | None]:
    """(width, height) of the image that run-length masks state; (None, None) if no mask is readable.

    Raises:
        DataError: they state different sizes.
    """
    sizes = set()
    for mask in masks:
        try:
            height, width = msgspec.json.decode(mask, type=_Mask).size
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        sizes.add((valid_side(width), valid_side(height)))
    if len(sizes) > 1:
        raise DataError(f"its masks are of images of different sizes: {sorted(map(str, sizes))}", where=where)
    return sizes.pop() if sizes else (None, None)
