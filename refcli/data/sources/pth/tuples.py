"""The tuples of a `.pth` list, one per expression, in the layouts of TransVG and OneRef."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from refcli.data.reading.json_files import parse_json, read_json
from refcli.data.reading.pickles import read_torch_list, starts_torch_list
from refcli.data.reading.streams import first_bytes
from refcli.data.sources.known_keys import excerpt
from refcli.data.sources.record import Problems
from refcli.data.sources.rows import Rejections
from refcli.errors import DataError

Family = Literal["coco", "referit", "flickr", "own"]
"""The collection that an image belongs to; `own`: none of the three."""
Layout = Literal["transvg", "oneref", "mixup", "flickr"]
"""`transvg`: 5 items, the second is "<annotation>.pth"; `oneref`: 5 or 6 items, the second is the image's size;
`mixup`: 5 or 6 items, the second is "referit" or "flickr"; `flickr`: 3 items."""
Box = tuple[float, float, float, float]

_COCO_NAME = re.compile(r"(?:.*/)?(?:COCO_(?:train|val)2014_([0-9]{12})(?:_[0-9]+)?|([0-9]{12}))\.jpg")
_NUMBER_NAME = re.compile(r"(?:.*/)?([0-9]{1,18})\.jpg")
_COCO_ANNOTATION = re.compile(r"([0-9]{1,18})\.pth")
_REFERIT_REGION = re.compile(r"([0-9]{1,18}_[0-9]{1,18})\.pth")
_JSON_START = re.compile(rb"\s*\[\s*(?:\[|null)")
_JSON_ROW = re.compile(rb'\[\s*"[^"\\]+\.(?:jpg|jpeg|png)"\s*,')
_LISTS = "this reader knows the lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef"
_SNIFFED_BYTES = 512
_MAX_COORDINATE = 2**53
"""Largest coordinate: larger whole numbers have no exact float."""


@dataclass(frozen=True, slots=True)
class PthRow:
    """One tuple of the file."""

    index: int
    where: str
    layout: Layout
    family: Family
    file_name: str
    number: int | None
    """The image's number in its family; None for `own`."""
    about: object
    """Second item: annotation or region, image size or family; None in Flickr30k's tuples."""
    box: Box
    phrase: str
    last: object
    """Fifth item of OneRef's tuples: the object's polygons."""

    @property
    def annotation_id(self) -> int | None:
        """COCO's number of the object, in TransVG's tuples."""
        match = (
            _COCO_ANNOTATION.fullmatch(self.about) if self.family == "coco" and isinstance(self.about, str) else None
        )
        return int(match[1]) if match else None

    @property
    def referit_region(self) -> str | None:
        """ReferItGame's name of the object, "<image>_<region>", in TransVG's tuples."""
        match = (
            _REFERIT_REGION.fullmatch(self.about) if self.family == "referit" and isinstance(self.about, str) else None
        )
        return match[1] if match else None


def read_rows(path: Path, *, family: Family | None, problems: Problems) -> list[PthRow]:
    """Read a list saved by torch, or the same list in JSON; `family` declares the family of the images, if known.

    A tuple of an unknown layout is reported as `broken_row` and left out.

    Raises:
        DataError: the file is unsafe or broken, no tuple has a known layout, the layouts do not belong together, or
            names do not fit the family.
    """
    is_json = first_bytes(path, _SNIFFED_BYTES).lstrip().startswith(b"[")
    content = read_json(path, list[msgspec.Raw]) if is_json else read_torch_list(path)
    if not isinstance(content, list) or not content:
        what = "nothing" if content == [] else f"a {type(content).__name__}, not a list of tuples"
        raise DataError(f"the file holds {what}", where=str(path), hint="it may be a checkpoint; check the path")
    rejected = Rejections(problems)
    rows: list[PthRow] = []
    for index, item in enumerate(content):
        try:
            if isinstance(item, msgspec.Raw):
                item = parse_json(item, list[object], where=f"{path}: tuple {index}")
            rows.append(_row(item, index, family, path))
        except DataError as error:
            rejected.add(error, f"{path.name}: tuple {index}")
    if not rows:
        rejected.raise_first()
    layouts = {row.layout for row in rows}
    if len(layouts) > 1 and layouts != {"oneref", "mixup"}:
        odd = next(row for row in rows if row.layout != rows[0].layout)
        raise DataError(
            f"tuples of the layouts {' and '.join(sorted(layouts))} do not belong in one file",
            where=f"{path}: tuple {odd.index}",
            hint="the first tuple is of the layout " + rows[0].layout,
        )
    return rows


def sniff_rows(path: Path) -> bool:
    """Whether a file starts as a list saved by torch, or as such tuples in JSON; False if it cannot be read."""
    with suppress(DataError, OSError):
        if starts_torch_list(path):
            return True
    start = first_bytes(path, _SNIFFED_BYTES)
    return _JSON_START.match(start) is not None and _JSON_ROW.search(start) is not None


def _row(item: object, index: int, declared: Family | None, path: Path) -> PthRow:
    if not isinstance(item, list | tuple) or len(item) not in (3, 5, 6):
        raise _malformed("the entry is not a tuple of 3, 5 or 6 items", path, index)
    file_name, about, box, phrase, last = item[:5] if len(item) > 3 else (item[0], None, *item[1:], None)
    if not isinstance(file_name, str) or not isinstance(phrase, str):
        raise _malformed("the file name or the phrase is not a string", path, index)
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_coordinate, box)):
        raise _malformed("the box is not four numbers", path, index)
    layout = _layout(about, len(item))
    if layout is None:
        raise _malformed(f"the second item is {excerpt(about, 80)!r}, which fits no known layout", path, index)
    family = _family(layout, about, file_name) if declared is None or layout == "mixup" else declared
    match = (_COCO_NAME if family == "coco" else _NUMBER_NAME).fullmatch(file_name)
    if family != "own" and match is None:
        raise _malformed(f"{excerpt(file_name)!r} is not the name of an image of {family}", path, index)
    return PthRow(
        index=index,
        where=f"{path.name}: tuple {index}",
        layout=layout,
        family=family,
        file_name=file_name,
        number=int(match[match.lastindex or 0]) if match and family != "own" else None,
        about=about,
        box=(box[0], box[1], box[2], box[3]),
        phrase=phrase,
        last=last if layout == "oneref" else None,
    )


def _is_coordinate(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= _MAX_COORDINATE)


def _layout(about: object, num_items: int) -> Layout | None:
    if num_items == 3:
        return "flickr"
    if isinstance(about, dict):
        return "oneref"
    if about in ("referit", "flickr"):
        return "mixup"
    return "transvg" if num_items == 5 and isinstance(about, str) and about.endswith(".pth") else None


def _family(layout: Layout, about: object, file_name: str) -> Family:
    if layout == "flickr" or about == "flickr":
        return "flickr"
    if about == "referit":
        return "referit"
    if _COCO_NAME.fullmatch(file_name):
        return "coco"
    return "referit" if layout == "transvg" and _REFERIT_REGION.fullmatch(str(about)) else "own"


def _malformed(message: str, path: Path, index: int) -> DataError:
    return DataError(message, where=f"{path}: tuple {index}", hint=_LISTS)
