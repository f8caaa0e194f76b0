"""A 64-bit difference hash of images, robust to re-encoding and resizing, and the search for similar images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64
from PIL import Image

from refcli.data.reading.images import open_scaled
from refcli.errors import ImageError

SIDE = 8
"""The hash has SIDE x SIDE bits."""
MAX_DISTANCE = 2
"""Differing bits up to which two images count as near-duplicates. Copies in another size or JPEG quality rarely differ
by more; if bits were independent, about one pair in 10^16 of unrelated photographs would be as similar."""
LARGEST_DISTANCE = 8
"""A larger limit would compare nearly every image with every other."""
_BITS = SIDE * SIDE
_BLOCK = 512
_IMAGES_PER_TASK = 16

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class ImageHashes:
    """Hashes by image id, and the images that cannot be read."""

    hashes: Mapping[str, int]
    unreadable: Mapping[str, str]
    """Path of an image -> reason."""


class NearDuplicate(NamedTuple):
    """Two images with different image ids that look the same."""

    train: str
    evaluation: str
    distance: int
    """Bits of the hashes that differ."""


def difference_hash(image: Image.Image) -> int:
    """The dHash of an image: a bit of each row is 1 where brightness rises to the right.

    The image is averaged to 9 x 8 grey pixels; bits run from left to right and from top to bottom, the highest first.
    An image without contrast has the hash 0; mirrored or cropped images have other hashes.
    """
    small = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def hash_images(images: Mapping[str, Path], *, workers: int = 1, progress: Progress | None = None) -> ImageHashes:
    """Hash image files; those that cannot be read are listed, not raised.

    Args:
        images: image id -> file.
        workers: number of processes; the result does not depend on it.
        progress: called after every image.
    """
    hashes: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    answers = _hash_all(list(images.values()), workers)
    for done, (image_id, answer) in enumerate(zip(images, answers, strict=True), start=1):
        if isinstance(answer, int):
            hashes[image_id] = answer
        else:
            unreadable[str(images[image_id])] = answer.reason
        if progress:
            progress(done, len(images))
    return ImageHashes(hashes, unreadable)


class _Unreadable(NamedTuple):
    reason: str


def _hash_all(paths: list[Path], workers: int) -> Iterator[int | _Unreadable]:
    if workers == 1 or len(paths) <= _IMAGES_PER_TASK:
        yield from map(_hash_file, paths)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_hash_file, paths, chunksize=_IMAGES_PER_TASK)


def _hash_file(path: Path) -> int | _Unreadable:
    try:
        return difference_hash(open_scaled(path).image)
    except ImageError as error:
        return _Unreadable(error.message)


def find_near_duplicates(
    train: Mapping[str, int], evaluation: Mapping[str, int], *, max_distance: int = MAX_DISTANCE
) -> list[NearDuplicate]:
    """All pairs of a training and an evaluation image with different ids whose hashes differ by few bits, sorted.

    The search is exact: two hashes that differ by d bits agree in one of d + 1 bands of bits, so only such pairs are
    compared.

    Args:
        train: image id -> hash.
        evaluation: the same.
        max_distance: 0..`LARGEST_DISTANCE`.

    Raises:
        ValueError: `max_distance` is out of range.
    """
    if not 0 <= max_distance <= LARGEST_DISTANCE:
        raise ValueError(f"max_distance is {max_distance}, not in 0..{LARGEST_DISTANCE}")
    train_ids, evaluation_ids = _by_hash(train), _by_hash(evaluation)
    first, second = (np.array(list(ids), dtype=np.uint64) for ids in (train_ids, evaluation_ids))
    return sorted(
        NearDuplicate(train_id, evaluation_id, int(distance))
        for one, other, distance in _near_pairs(first, second, max_distance)
        for train_id in train_ids[int(first[one])]
        for evaluation_id in evaluation_ids[int(second[other])]
        if train_id != evaluation_id
    )


def _by_hash(hashes: Mapping[str, int]) -> dict[int, list[str]]:
    ids: dict[int, list[str]] = {}
    for image_id, value in hashes.items():
        ids.setdefault(value, []).append(image_id)
    return ids


def _near_pairs(
    first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " m"], max_distance: int
) -> Int64[np.ndarray, "pairs 3"]:
    """Rows (index in `first`, index in `second`, distance), each pair once."""
    found = [np.empty((0, 3), dtype=np.int64)]
    edges = [round(band * _BITS / (max_distance + 1)) for band in range(max_distance + 2)]
    for low, high in pairwise(edges):
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        keys = (first >> shift) & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for start in range(0, len(second), _BLOCK):
            block = second[start : start + _BLOCK]
            wanted = (block >> shift) & mask
            begins = np.searchsorted(keys, wanted, "left")
            counts = np.searchsorted(keys, wanted, "right") - begins
            others = np.repeat(np.arange(len(block)), counts)
            within_group = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            ones = order[np.repeat(begins, counts) + within_group]
            distances = _count_bits(first[ones] ^ block[others])
            near = distances <= max_distance
            found.append(np.stack([ones[near], others[near] + start, distances[near]], axis=1))
    pairs: Int64[np.ndarray, "pairs 3"] = np.unique(np.concatenate(found), axis=0)
    return pairs


def _count_bits(values: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    counts: Int64[np.ndarray, " n"] = np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)
    return counts
