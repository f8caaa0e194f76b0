"""Overlaps between training and evaluation splits of a store, and repetitions within a split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from refcli.data.audit.codes import CodedSplit, Codes, coded_splits, codes_of, flags
from refcli.data.audit.perceptual_hash import MAX_DISTANCE, NearDuplicate, find_near_duplicates
from refcli.data.store.read import Store

AUDIT_SCHEMA = "refcli.audit/1"


@dataclass(frozen=True)
class SplitAudit:
    """Repetitions within one split."""

    name: str
    is_train_like: bool
    examples: int
    images: int
    objects: int
    """Distinct regions: by image and source id, or by image and box without one."""
    duplicate_expressions: int
    """Examples with the image, text and regions of an earlier one."""
    ambiguous_expressions: int
    """Examples whose text refers to other regions of the same image elsewhere in the split."""


@dataclass(frozen=True)
class Overlap:
    """The part of an evaluation split that is also in a train-like split."""

    train: str
    evaluation: str
    shared_images: int
    shared_objects: int
    """Objects of `evaluation` whose source id or box occurs in the same image in `train`."""
    identical_examples: int
    """Examples of `evaluation` whose image, boxes and text occur together in `train`."""
    near_duplicates: int | None
    """Images of `evaluation` that look like an image of `train` with another id; None if images were not compared."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON document, under the names of the format."""
        facts = asdict(self)
        return facts | {"look_alikes": facts.pop("near_duplicates")}


@dataclass(frozen=True)
class Audit:
    """The findings on a store. Texts that differ only in case and blanks are equal."""

    splits: tuple[SplitAudit, ...]
    overlaps: tuple[Overlap, ...]
    """Every pair of a train-like and an evaluation split."""
    not_audited: tuple[str, ...] = ()
    """Splits with missing parts or without examples."""
    near_duplicates: tuple[NearDuplicate, ...] | None = None
    """None if images were not compared."""
    unreadable_images: Mapping[str, str] = field(default_factory=dict)
    """Path -> reason."""

    @property
    def overlapping(self) -> tuple[Overlap, ...]:
        """The pairs of splits that share images."""
        return tuple(overlap for overlap in self.overlaps if overlap.shared_images)

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values for a JSON document."""
        return {
            "schema": AUDIT_SCHEMA,
            "splits": [asdict(split) for split in self.splits],
            "overlaps": [overlap.to_json() for overlap in self.overlaps],
            "not_audited": list(self.not_audited),
            "look_alikes": None if self.near_duplicates is None else [pair._asdict() for pair in self.near_duplicates],
            "unreadable_pictures": dict(self.unreadable_images),
        }


def audit_store(
    store: Store,
    *,
    only: Collection[str] | None = None,
    hashes: Mapping[str, int] | None = None,
    max_distance: int = MAX_DISTANCE,
) -> Audit:
    """Compare train-like with evaluation splits of a store, and find repetitions within each.

    Args:
        store: the store.
        only: audit the splits of these data sets, and all pairs with one of them; None for all.
        hashes: image id -> `difference_hash`, to find near-duplicates; None skips the search.
        max_distance: maximum number of bits by which the hashes of near-duplicates differ.

    Raises:
        DataError: a file of the store is missing or damaged.
    """
    opened = [split for split in map(store.split, store.complete_names()) if len(split)]
    splits, image_ids = coded_splits(opened, only)
    evaluations = [split for split in splits if not split.is_train_like]
    trains = [split for split in splits if split.is_train_like]
    near_duplicates = None
    if hashes is not None:
        sides = (_hashes_of(group, image_ids, hashes) for group in (trains, evaluations))
        wanted = [
            set(_ids_of([split for split in group if split.is_wanted], image_ids)) for group in (trains, evaluations)
        ]
        found = find_near_duplicates(*sides, max_distance=max_distance)
        near_duplicates = [pair for pair in found if pair.train in wanted[0] or pair.evaluation in wanted[1]]
    pairs = _coded_pairs(near_duplicates, image_ids)
    overlaps = []
    for train in trains:
        seen = _Seen(train, splits)
        overlaps += [seen.overlap(split, pairs) for split in evaluations if train.is_wanted or split.is_wanted]
    audited = {split.name for split in splits}
    return Audit(
        splits=tuple(_repetitions(split) for split in splits if split.is_wanted),
        overlaps=tuple(overlaps),
        not_audited=tuple(name for name in store.names() if name not in audited),
        near_duplicates=None if near_duplicates is None else tuple(near_duplicates),
    )


def distinct_images(store: Store) -> dict[str, Path]:
    """Image id -> image file; of several, the first by split.

    Raises:
        DataError: an image path leaves the image root.
    """
    images: dict[str, Path] = {}
    for split in map(store.split, store.complete_names()):
        if not len(split):
            continue
        table = pa.concat_tables(split.tables(["image_id", "image"]))
        codes, _ = codes_of(table.column("image_id"))
        firsts = table.take(np.unique(codes, return_index=True)[1])
        for image_id, image in zip(*(firsts.column(name).to_pylist() for name in ("image_id", "image")), strict=True):
            images.setdefault(image_id, split.path_of_image(image, where=image_id))
    return images


def _repetitions(split: CodedSplit) -> SplitAudit:
    distinct, firsts = np.unique(split.examples, return_index=True)
    meanings = np.bincount(split.requests[firsts])
    return SplitAudit(
        name=split.name,
        is_train_like=split.is_train_like,
        examples=len(split.examples),
        images=_num_distinct(split.images),
        objects=_num_distinct(split.objects),
        duplicate_expressions=len(split.examples) - len(distinct),
        ambiguous_expressions=int((meanings[split.requests] > 1).sum()),
    )


class _Seen:
    """The contents of a training split, as one flag per code."""

    def __init__(self, train: CodedSplit, splits: Sequence[CodedSplit]) -> None:
        self._name = train.name
        self._images = flags(train.all_images, _size([split.all_images for split in splits]))
        self._examples = flags(train.examples, _size([split.examples for split in splits]))
        self._boxes = flags(train.boxes, _size([split.boxes for split in splits]))
        self._sources = flags(train.sources, _size([split.sources for split in splits]))

    def overlap(self, other: CodedSplit, near_duplicates: Int64[np.ndarray, "pairs 2"] | None) -> Overlap:
        """The part of an evaluation split that is in this one."""
        is_seen = self._boxes[other.boxes] | self._sources[other.sources]
        similar = None
        if near_duplicates is not None:
            ones, others = near_duplicates.T
            similar = _num_distinct(others[self._images[ones] & np.isin(others, other.all_images)])
        return Overlap(
            train=self._name,
            evaluation=other.name,
            shared_images=_num_distinct(other.all_images[self._images[other.all_images]]),
            shared_objects=_num_distinct(other.objects[is_seen]),
            identical_examples=int(self._examples[other.examples].sum()),
            near_duplicates=similar,
        )


def _size(of_splits: Sequence[Codes]) -> int:
    return 1 + max((int(codes.max(initial=-1)) for codes in of_splits), default=-1)


def _num_distinct(codes: Codes) -> int:
    return len(np.unique(codes))


def _ids_of(splits: Sequence[CodedSplit], image_ids: pa.Array) -> list[str]:
    used = np.unique(np.concatenate([np.empty(0, np.int64), *(split.all_images for split in splits)]))
    ids: list[str] = image_ids.take(used).to_pylist()
    return ids


def _hashes_of(splits: Sequence[CodedSplit], image_ids: pa.Array, hashes: Mapping[str, int]) -> dict[str, int]:
    return {image_id: hashes[image_id] for image_id in _ids_of(splits, image_ids) if image_id in hashes}


def _coded_pairs(
    near_duplicates: Sequence[NearDuplicate] | None, image_ids: pa.Array
) -> Int64[np.ndarray, "pairs 2"] | None:
    if near_duplicates is None:
        return None
    ids = pa.array([image_id for pair in near_duplicates for image_id in pair[:2]], image_ids.type)
    codes: Codes = pc.index_in(ids, value_set=image_ids).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes.reshape(-1, 2)
