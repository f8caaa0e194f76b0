"""What training splits of a store share with its evaluation splits, and what repeats within a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from refcli.data.perceptual_hash import MAX_DISTANCE, LookAlike, find_look_alikes
from refcli.data.store import Store, StoreSplit
from refcli.errors import DataError

AUDIT_SCHEMA = "refcli.audit/1"
PIXEL_FRACTION = 100
"""Boxes are equal if they are after rounding to 1 / 100 pixel, the precision of COCO's files."""
SIDES = ("x1", "y1", "x2", "y2")
_REGION_COLUMNS = tuple(f"regions.list.element.{name}" for name in (*SIDES, "source_id"))


def is_train_like(split: str) -> bool:
    """Whether models are trained on a split, by its name: "train", "train2014", "trainval", "train_pseudo", "focus"...

    Every name that starts with "train" or "focus", in any case, is train-like; all others are for evaluation.
    """
    return split.casefold().startswith(("train", "focus"))


@dataclass(frozen=True)
class SplitAudit:
    """One split by itself."""

    name: str
    is_train_like: bool
    examples: int
    images: int
    objects: int
    """Distinct regions: by image and source id, or by image and box where there is none."""
    duplicate_expressions: int
    """Examples with the image, text and regions of an earlier one."""
    ambiguous_expressions: int
    """Examples whose text refers to other regions of the same image elsewhere in the split."""


@dataclass(frozen=True)
class Overlap:
    """What of an evaluation split is also in a train-like split."""

    train: str
    evaluation: str
    shared_images: int
    shared_objects: int
    """Objects of `evaluation` whose source id or box occurs on the same image in `train`."""
    identical_examples: int
    """Examples of `evaluation` whose image, boxes and text occur together in `train`."""
    look_alikes: int | None
    """Images of `evaluation` that look like an image of `train` with another id; None: pictures were not compared."""


@dataclass(frozen=True)
class Audit:
    """The findings on a store. Texts are the same if they differ in case and blanks only."""

    splits: tuple[SplitAudit, ...]
    overlaps: tuple[Overlap, ...]
    """Every pair of a train-like and an evaluation split."""
    look_alikes: tuple[LookAlike, ...] | None = None
    """None: pictures were not compared."""
    unreadable_pictures: Mapping[str, str] = field(default_factory=dict)
    """Path -> why the picture could not be compared."""

    @property
    def overlapping(self) -> tuple[Overlap, ...]:
        """The pairs of splits that share images."""
        return tuple(overlap for overlap in self.overlaps if overlap.shared_images)

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values for a JSON document."""
        return {
            "schema": AUDIT_SCHEMA,
            "splits": [asdict(split) for split in self.splits],
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            "look_alikes": None if self.look_alikes is None else [pair._asdict() for pair in self.look_alikes],
            "unreadable_pictures": dict(self.unreadable_pictures),
        }


def audit_store(store: Store, *, hashes: Mapping[str, int] | None = None, max_distance: int = MAX_DISTANCE) -> Audit:
    """Compare all train-like with all evaluation splits of a store, and look for repetitions within each.

    Args:
        store: the store.
        hashes: image id -> `difference_hash` of its picture, to find look-alikes; None: they are not looked for.
        max_distance: bits by which the hashes of look-alikes may differ.

    Raises:
        DataError: a file of the store is missing or damaged.
    """
    splits, image_ids = _coded_splits([store.split(name) for name in store.names()])
    evaluations = [split for split in splits if not split.is_train_like]
    trains = [split for split in splits if split.is_train_like]
    look_alikes = None
    if hashes is not None:
        sides = (_hashes_of(group, image_ids, hashes) for group in (trains, evaluations))
        look_alikes = find_look_alikes(*sides, max_distance=max_distance)
    pairs = _coded_pairs(look_alikes, image_ids)
    overlaps = []
    for train in trains:
        seen = _Seen(train, splits)
        overlaps += [seen.overlap(split, pairs) for split in evaluations]
    return Audit(
        splits=tuple(split.audit() for split in splits),
        overlaps=tuple(overlaps),
        look_alikes=None if look_alikes is None else tuple(look_alikes),
    )


def distinct_pictures(store: Store) -> dict[str, Path]:
    """Image id -> its picture; of several, the first by split.

    Raises:
        DataError: an image path leaves the image root.
    """
    pictures: dict[str, Path] = {}
    for split in map(store.split, store.names()):
        table = pa.concat_tables(split.tables(["image_id", "image"]))
        codes, _ = _codes(table.column("image_id"))
        firsts = table.take(np.unique(codes, return_index=True)[1])
        for image_id, image in zip(*(firsts.column(name).to_pylist() for name in ("image_id", "image")), strict=True):
            if image.startswith("/") or ".." in image.split("/"):
                raise DataError(f"the image path {image!r} leaves the image root", where=f"{split.name}: {image_id}")
            pictures.setdefault(image_id, split.image_root / image)
    return pictures


_Codes = Int64[np.ndarray, " n"]
"""Equal things have equal codes, over all splits of the store; codes are dense from 0."""


@dataclass(frozen=True)
class _CodedSplit:
    name: str
    images: _Codes
    """Of every example, as the next two."""
    requests: _Codes
    """Image and text."""
    examples: _Codes
    """Image, text and set of boxes."""
    boxes: _Codes
    """Image and box of every region."""
    sources: _Codes
    """Image and source id of every region; -1 without one."""
    objects: _Codes
    """`sources`, or codes of their own for boxes without one."""

    @property
    def is_train_like(self) -> bool:
        return is_train_like(self.name.rpartition(":")[2])

    def audit(self) -> SplitAudit:
        """What repeats."""
        distinct, firsts = np.unique(self.examples, return_index=True)
        meanings = np.bincount(self.requests[firsts])
        return SplitAudit(
            name=self.name,
            is_train_like=self.is_train_like,
            examples=len(self.examples),
            images=_num_distinct(self.images),
            objects=_num_distinct(self.objects),
            duplicate_expressions=len(self.examples) - len(distinct),
            ambiguous_expressions=int((meanings[self.requests] > 1).sum()),
        )


class _Seen:
    """What a training split holds, as one flag per code."""

    def __init__(self, train: _CodedSplit, splits: Sequence[_CodedSplit]) -> None:
        self._name = train.name
        self._images = _flags(train.images, [split.images for split in splits])
        self._examples = _flags(train.examples, [split.examples for split in splits])
        self._boxes = _flags(train.boxes, [split.boxes for split in splits])
        self._sources = _flags(train.sources, [split.sources for split in splits])

    def overlap(self, other: _CodedSplit, look_alikes: Int64[np.ndarray, "pairs 2"] | None) -> Overlap:
        """What of an evaluation split is in this one."""
        is_seen = self._boxes[other.boxes] | self._sources[other.sources]
        similar = None
        if look_alikes is not None:
            ones, others = look_alikes.T
            similar = _num_distinct(others[self._images[ones] & np.isin(others, other.images)])
        return Overlap(
            train=self._name,
            evaluation=other.name,
            shared_images=_num_distinct(other.images[self._images[other.images]]),
            shared_objects=_num_distinct(other.objects[is_seen]),
            identical_examples=int(self._examples[other.examples].sum()),
            look_alikes=similar,
        )


def _flags(own: _Codes, everyones: Sequence[_Codes]) -> Bool[np.ndarray, " codes"]:
    """Whether each code is among `own`; the last entry, which -1 picks, is False."""
    flags = np.zeros(2 + max((int(codes.max(initial=-1)) for codes in everyones), default=-1), dtype=np.bool_)
    flags[own[own >= 0]] = True
    return flags


def _num_distinct(codes: _Codes) -> int:
    return len(np.unique(codes))


def _coded_splits(splits: Sequence[StoreSplit]) -> tuple[list[_CodedSplit], pa.Array]:
    """The splits as codes, and the image id of every image code."""
    if not splits:
        return [], pa.array([], pa.large_string())
    columns = ["image_id", "expression", *_REGION_COLUMNS]
    tables = [pa.concat_tables(split.tables(columns)) for split in splits]
    table = pa.concat_tables(tables)
    images, image_ids = _codes(table.column("image_id"))
    texts, _ = _codes(_comparable(table.column("expression")))
    lists = table.column("regions")
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    regions = pc.list_flatten(lists)
    corners = np.stack([pc.struct_field(regions, side).to_numpy() for side in SIDES], axis=1)
    names, _ = _codes(_without_empty(pc.struct_field(regions, "source_id")))
    owners = np.repeat(np.arange(len(table)), lengths)
    boxes = _box_codes(images[owners], corners)
    sources = np.where(names < 0, -1, _joined(images[owners], names + 1))
    objects = np.where(names < 0, sources.max(initial=-1) + 1 + boxes, sources)
    requests = _joined(images, texts)
    examples = _joined(requests, _set_codes(lengths, owners, boxes))
    row_ends = np.cumsum([len(one) for one in tables])
    region_ends = np.concatenate([[0], np.cumsum(lengths)])[row_ends]
    by_row = (np.split(codes, row_ends[:-1]) for codes in (images, requests, examples))
    by_region = (np.split(codes, region_ends[:-1]) for codes in (boxes, sources, objects))
    rows = zip(splits, *by_row, *by_region, strict=True)
    return [_CodedSplit(split.name, *codes) for split, *codes in rows], image_ids


def _codes(texts: pa.ChunkedArray) -> tuple[_Codes, pa.Array]:
    """Codes of texts (-1 for null), and the text of every code."""
    chunks = [chunk.cast(pa.large_string()) for chunk in texts.chunks]
    encoded = pa.concat_arrays(chunks or [pa.array([], pa.large_string())]).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary


def _comparable(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    single = pc.replace_substring_regex(texts, pattern=r"\s+", replacement=" ")
    return pc.utf8_lower(pc.utf8_trim_whitespace(single))


def _without_empty(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)


def _joined(first: _Codes, second: _Codes) -> _Codes:
    """Codes of pairs of codes."""
    pairs = first * (int(second.max(initial=0)) + 1) + second
    return np.unique(pairs, return_inverse=True)[1].reshape(-1)


def _box_codes(images: _Codes, boxes_xyxy: Float64[np.ndarray, "n 4"]) -> _Codes:
    codes = images
    for side in boxes_xyxy.T:
        codes = _joined(codes, np.unique(np.rint(side * PIXEL_FRACTION), return_inverse=True)[1])
    return codes


def _set_codes(lengths: _Codes, owners: _Codes, boxes: _Codes) -> _Codes:
    """Codes of the sets of boxes that examples have, whatever their order."""
    ordered = boxes[np.lexsort((boxes, owners))]
    starts = np.cumsum(lengths) - lengths
    codes = np.zeros(len(lengths), dtype=np.int64)
    for position in range(int(lengths.max(initial=0))):
        has_more = lengths > position
        codes[has_more] = _joined(codes[has_more], ordered[starts[has_more] + position])
    return _joined(lengths, codes)


def _hashes_of(splits: Sequence[_CodedSplit], image_ids: pa.Array, hashes: Mapping[str, int]) -> dict[str, int]:
    used = np.unique(np.concatenate([np.empty(0, np.int64), *(split.images for split in splits)]))
    return {image_id: hashes[image_id] for image_id in image_ids.take(used).to_pylist() if image_id in hashes}


def _coded_pairs(look_alikes: Sequence[LookAlike] | None, image_ids: pa.Array) -> Int64[np.ndarray, "pairs 2"] | None:
    if look_alikes is None:
        return None
    ids = pa.array([image_id for pair in look_alikes for image_id in pair[:2]], image_ids.type)
    codes: _Codes = pc.index_in(ids, value_set=image_ids).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes.reshape(-1, 2)
