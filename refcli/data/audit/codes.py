"""Integer codes of the splits of a store: equal images, texts, boxes and objects have equal codes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from refcli.data.sources.image_names import possible_coco_id
from refcli.data.spec import is_train_like
from refcli.data.store.layout import SIDES
from refcli.data.store.read import StoreSplit

PIXEL_FRACTION = 100
"""Boxes are equal if they agree after rounding to 1 / 100 pixel, the precision of COCO's files."""
_TWELVE_DIGITS = r"[:/][0-9]{12}\.jpg$"
_COLUMNS = ("expression", *(f"regions.list.element.{name}" for name in (*SIDES, "source_id")))

Codes = Int64[np.ndarray, " n"]
"""Equal values have equal codes, over all splits of the store; codes are dense from 0."""
_Mask = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class CodedSplit:
    """One split; if it is not wanted itself, only its examples on images of wanted splits are included."""

    name: str
    is_wanted: bool
    """Whether the split itself is audited, not only compared with others."""
    all_images: Codes
    """The images of all its examples, included or not."""
    images: Codes
    """The image of every included example."""
    requests: Codes
    """Image and text."""
    examples: Codes
    """Image, text and set of boxes."""
    boxes: Codes
    """Image and box of every region."""
    sources: Codes
    """Image and source id of every region; -1 without one."""
    objects: Codes
    """`sources`; regions without a source id have the code of their box instead."""

    @property
    def is_train_like(self) -> bool:
        """See `refcli.data.spec.is_train_like`."""
        return is_train_like(self.name.rpartition(":")[2])


def coded_splits(splits: Sequence[StoreSplit], only: Collection[str] | None) -> tuple[list[CodedSplit], pa.Array]:
    """The codes of splits, and the image id of every image code.

    For splits outside `only`, texts and boxes are read only on images shared with a split of `only`.

    Args:
        splits: splits with at least one example.
        only: data sets to audit; None for all.
    """
    if not splits:
        return [], pa.array([], pa.large_string())
    columns = _image_ids(splits)
    codes, image_ids = codes_of(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    all_images = np.split(codes, np.cumsum([len(column) for column in columns])[:-1])
    wanted = [only is None or split.name.rpartition(":")[0] in only for split in splits]
    kept = list(_kept(splits, all_images, wanted, len(image_ids)))
    tables = [_rows(split, mask) for split, mask in zip(splits, kept, strict=True) if mask.any()]
    images = np.concatenate([own_images[mask] for own_images, mask in zip(all_images, kept, strict=True)])
    by_row, by_region, region_ends = _coded_rows(images, tables)
    row_ends = np.cumsum([mask.sum() for mask in kept])
    rows = (np.split(codes, row_ends[:-1]) for codes in (images, *by_row))
    regions = (np.split(codes, region_ends[row_ends][:-1]) for codes in by_region)
    parts = zip(splits, wanted, all_images, *rows, *regions, strict=True)
    return [CodedSplit(split.name, is_wanted, *codes) for split, is_wanted, *codes in parts], image_ids


def _image_ids(splits: Sequence[StoreSplit]) -> list[pa.ChunkedArray]:
    """The image ids of every split.

    An image that is not marked as COCO's, but has the number and the size of a COCO image of the store, gets the id of
    that image; unknown sizes agree with all.
    """
    columns = [split.column("image_id") for split in splits]
    possible = [_possibly_of_coco(column) for column in columns]
    if not any(possible):
        return columns
    coco_images: dict[str, tuple[int, int]] = {}
    for split in splits:
        coco_images |= {key: size for key, size in _sizes(split).items() if key.startswith("coco:")}
    return [
        _renamed(column, _matching_coco_images(split, keys, coco_images)) if keys else column
        for split, column, keys in zip(splits, columns, possible, strict=True)
    ]


def _possibly_of_coco(column: pa.ChunkedArray) -> dict[str, str]:
    """Custom images whose name could be COCO's -> the id that they would have in COCO."""
    distinct = pc.unique(column)
    named = distinct.filter(pc.match_substring_regex(distinct, _TWELVE_DIGITS)).to_pylist()
    return {key: f"coco:{number}" for key in named if (number := possible_coco_id(key)) is not None}


def _sizes(split: StoreSplit) -> dict[str, tuple[int, int]]:
    table = pa.concat_tables(split.tables(["image_id", "width", "height"]))
    return {key: (width, height) for key, width, height in zip(*(c.to_pylist() for c in table.columns), strict=True)}


def _matching_coco_images(
    split: StoreSplit, keys: Mapping[str, str], coco_images: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """The possible COCO images that are in the store and have the same size."""
    sizes = _sizes(split)
    return {
        own: key
        for own, key in keys.items()
        if key in coco_images
        and all(not (a and b) or a == b for a, b in zip(sizes[own], coco_images[key], strict=True))
    }


def _renamed(column: pa.ChunkedArray, names: Mapping[str, str]) -> pa.ChunkedArray:
    if not names:
        return column
    found = pc.index_in(column, value_set=pa.array(list(names), column.type))
    others = pc.take(pa.array(list(names.values()), column.type), found)
    return pc.if_else(pc.is_valid(found), others, column)


def codes_of(texts: pa.ChunkedArray) -> tuple[Codes, pa.Array]:
    """Codes of texts (-1 for null), and the text of every code."""
    chunks = [chunk.cast(pa.large_string()) for chunk in texts.chunks]
    encoded = pa.concat_arrays(chunks or [pa.array([], pa.large_string())]).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary


def flags(own: Codes, size: int) -> _Mask:
    """Whether each code below `size` occurs in `own`; the additional last entry, for the code -1, is False."""
    found = np.zeros(size + 1, dtype=np.bool_)
    found[own[own >= 0]] = True
    return found


def _kept(
    splits: Sequence[StoreSplit], all_images: Sequence[Codes], wanted: Sequence[bool], num_images: int
) -> Iterator[_Mask]:
    """For every split, the rows whose text and boxes are needed."""
    are_train_like = [is_train_like(split.name.rpartition(":")[2]) for split in splits]
    shown = {side: np.zeros(num_images, dtype=np.bool_) for side in (True, False)}
    for own_images, side, is_wanted in zip(all_images, are_train_like, wanted, strict=True):
        if is_wanted:
            shown[side][own_images] = True
    for own_images, side, is_wanted in zip(all_images, are_train_like, wanted, strict=True):
        yield np.ones(len(own_images), dtype=np.bool_) if is_wanted else shown[not side][own_images]


def _rows(split: StoreSplit, mask: _Mask) -> pa.Table:
    done = 0
    tables = []
    for table in split.tables(_COLUMNS):
        tables.append(table.filter(pa.array(mask[done : done + len(table)])))
        done += len(table)
    return pa.concat_tables(tables)


def _coded_rows(images: Codes, tables: Sequence[pa.Table]) -> tuple[list[Codes], list[Codes], Codes]:
    """(requests, examples) by row, (boxes, sources, objects) by region, and where the regions of each row end."""
    if not tables:
        return [images, images], [images, images, images], np.zeros(1, dtype=np.int64)
    table = pa.concat_tables(tables)
    texts, _ = codes_of(_comparable(table.column("expression")))
    lists = table.column("regions")
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    regions = pc.list_flatten(lists)
    corners = np.stack([pc.struct_field(regions, side).to_numpy() for side in SIDES], axis=1)
    names, _ = codes_of(_without_empty(pc.struct_field(regions, "source_id")))
    owners = np.repeat(np.arange(len(table)), lengths)
    boxes = _box_codes(images[owners], corners)
    sources = np.where(names < 0, -1, _joined(images[owners], names + 1))
    objects = np.where(names < 0, sources.max(initial=-1) + 1 + boxes, sources)
    requests = _joined(images, texts)
    examples = _joined(requests, _set_codes(lengths, owners, boxes))
    return [requests, examples], [boxes, sources, objects], np.concatenate([[0], np.cumsum(lengths)])


def _comparable(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    single = pc.replace_substring_regex(texts, pattern=r"\s+", replacement=" ")
    return pc.utf8_lower(pc.utf8_trim_whitespace(single))


def _without_empty(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)


def _joined(first: Codes, second: Codes) -> Codes:
    """Codes of pairs of codes."""
    pairs = first * (int(second.max(initial=0)) + 1) + second
    return np.unique(pairs, return_inverse=True)[1].reshape(-1)


def _box_codes(images: Codes, boxes_xyxy: Float64[np.ndarray, "n 4"]) -> Codes:
    codes = images
    with np.errstate(over="ignore"):  # images of unknown size may have huge boxes
        sides = np.rint(boxes_xyxy.T * PIXEL_FRACTION)
    for side in sides:
        codes = _joined(codes, np.unique(side, return_inverse=True)[1])
    return codes


def _set_codes(lengths: Codes, owners: Codes, boxes: Codes) -> Codes:
    """Codes of the sets of boxes of examples, regardless of order."""
    ordered = boxes[np.lexsort((boxes, owners))]
    starts = np.cumsum(lengths) - lengths
    codes = np.zeros(len(lengths), dtype=np.int64)
    for position in range(int(lengths.max(initial=0))):
        has_more = lengths > position
        codes[has_more] = _joined(codes[has_more], ordered[starts[has_more] + position])
    return _joined(lengths, codes)
