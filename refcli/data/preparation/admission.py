"""Records that no store could hold: their names, ids and sizes are checked before anything is done with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from refcli.data.sources.known_keys import excerpt
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.sources.rows import MAX_SIDE
from refcli.files import is_plain_name

UNSTORABLE = "unstorable_record"
LONGEST_TEXT = 1 << 16
"""Characters of an id or a kind."""
_LONGEST_PATH = 4096
_LONGEST_PART = 255
"""Bytes that systems allow a path and each of its parts."""
_CONTROL = re.compile("[\0-\x1f\x7f]")


def storable(records: Iterable[RawRecord], problems: Problems) -> Iterator[RawRecord]:
    """The records that a store can hold; the others are listed as `unstorable_record`."""
    for record in records:
        fault = _fault(record)
        if fault is None:
            yield record
        else:
            problems.add(UNSTORABLE, excerpt(record.where, 200), f"{fault}; {len(record.expressions)} expressions")


def _fault(record: RawRecord) -> str | None:
    if not is_plain_name(record.split) or _CONTROL.search(record.split):
        return f"{excerpt(record.split)!r} cannot be the name of a split"
    image = record.image
    for side in (image.width, image.height):
        if side is not None and not 0 <= side <= MAX_SIDE:
            return f"its image is {excerpt(image.width)} x {excerpt(image.height)}"
    if not all(map(_is_path, image.names[:1])):
        return f"{excerpt(image.names[0])!r} cannot be the name of a file"
    texts = (
        image.key,
        record.kind,
        *(one.id for one in record.expressions),
        *(one.source_id for one in record.regions),
    )
    odd = next((text for text in texts if text is not None and not _is_text(text)), None)
    return None if odd is None else f"{excerpt(odd)!r} cannot be stored as an id, a kind or a name"


def _is_path(name: str) -> bool:
    if not _is_text(name) or "\0" in name:
        return False
    parts = [part.encode() for part in name.split("/")]
    return sum(map(len, parts)) <= _LONGEST_PATH and all(len(part) <= _LONGEST_PART for part in parts)


def _is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8, and is none that fills a disk."""
    if len(text) > LONGEST_TEXT:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
