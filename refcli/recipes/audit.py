"""audit: find overlaps between the training and evaluation splits of a store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from refcli.data.audit.overlaps import Audit, audit_store, distinct_images
from refcli.data.audit.perceptual_hash import LARGEST_DISTANCE, MAX_DISTANCE, hash_images
from refcli.data.store.read import Store
from refcli.errors import GateError, UsageError


def audit(
    store_path: Path,
    *,
    only: Collection[str] | None = None,
    check_images: bool = False,
    max_distance: int = MAX_DISTANCE,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Find overlaps between splits of a store, and repetitions within them.

    Args:
        store_path: the store.
        only: audit these data sets, and all pairs of splits with one of them; None for all.
        check_images: read all images to find the same photograph under different ids.
        max_distance: maximum number of bits by which the hashes of two such images differ.
        workers: number of processes that read images.
        progress: called with (images read, images in all).

    Raises:
        UsageError: `max_distance` or `workers` is out of range.
        DataError: there is no store, or one of its files is missing or damaged.
    """
    if not 0 <= max_distance <= LARGEST_DISTANCE:
        raise UsageError(f"{max_distance} is not in 0..{LARGEST_DISTANCE}", where="--max-distance")
    if workers < 1:
        raise UsageError(f"at least one process is needed, not {workers}", where="--workers")
    store = Store(store_path)
    if not check_images:
        return audit_store(store, only=only)
    found = hash_images(distinct_images(store), workers=workers, progress=progress)
    result = audit_store(store, only=only, hashes=found.hashes, max_distance=max_distance)
    return replace(result, unreadable_images=found.unreadable)


def refuse_overlap(result: Audit) -> None:
    """Check that training and evaluation splits share no image.

    Raises:
        GateError: some do; the worst pair is named.
    """
    overlapping = result.overlapping
    if overlapping:
        worst = max(overlapping, key=lambda overlap: overlap.shared_images)
        raise GateError(
            f"{len(overlapping)} of {len(result.overlaps)} pairs of training and evaluation splits share images",
            where=f"{worst.train} holds {worst.shared_images:,} images of {worst.evaluation}",
            hint="leave those images out of training, or do not score on such a split",
        )
