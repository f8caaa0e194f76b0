"""The samples of one or several splits of a store, by (index, draw)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int
from PIL import Image
from torch.utils.data import Dataset

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example
from refcli.data.reading.images import open_image
from refcli.data.store.read import Store, StoreSplit
from refcli.data.training.negatives import BorrowedExpressions, borrows, without_target
from refcli.data.training.transforms import Sample, make_sample
from refcli.errors import ConfigError, DataError, ImageError
from refcli.tables import did_you_mean

MASKS_OF_REGIONS = "regions.list.element.mask_counts"
ONE_SIDE_OF_REGIONS = "regions.list.element.x1"
"""Enough of the column to count the regions, without their masks."""


class GroundingDataset(Dataset[Sample]):
    """Samples of the model frame; deterministic in (index, draw) and picklable for worker processes.

    Args:
        store: where the splits are.
        splits: "dataset:split" names, in the order of the indices.
        tower: gives the size of the model frame.
        augment: how training samples are changed; None is the evaluation transform.
        kinds: keep only expressions of these kinds; None keeps all.
        limit: keep only the first so many samples.

    Raises:
        DataError: an unknown split, or nothing is left.
        ConfigError: a kind that occurs in none of the splits.
    """

    def __init__(
        self,
        store: Store,
        splits: Sequence[str],
        *,
        tower: TowerSettings,
        augment: AugmentSettings | None,
        kinds: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self.tower = tower
        self.augment = augment
        self._splits: list[StoreSplit] = [store.split(name) for name in splits]
        self._starts = np.array([0, *accumulate(len(split) for split in self._splits)], dtype=np.int64)
        rows = np.arange(self._starts[-1]) if kinds is None else _rows_of_kinds(self._splits, kinds)
        self._rows: Int[np.ndarray, " samples"] = rows[:limit]
        if not len(self._rows):
            raise DataError("no samples are left", where=", ".join(splits) or "data.train", hint="check data.kinds")
        is_borrowing = augment is not None and augment.no_target > 0
        lenders = self._rows[self.has_target()] if is_borrowing else self._rows
        self._expressions = BorrowedExpressions(self._splits, lenders) if is_borrowing else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of (index, draw).

        Raises:
            ImageError: the image cannot be read.
            DataError: the image is not of the size that the store states, a mask is damaged, or a region is not in the
                image.
        """
        index, draw = key
        split, example = self._locate(int(self._rows[index]))
        path = split.image_path(example)
        image = _open(path, example)
        example = _with_size(example, *image.size, path)
        example = self._maybe_without_target(int(self._rows[index]), example, draw)
        try:
            return make_sample(image, example, tower=self.tower, augment=self.augment, draw=draw)
        except DataError as error:
            error.where = error.where or f"{split.name}: {example.id}"
            raise

    def example(self, index: int) -> Example:
        """The record behind a sample."""
        return self._locate(int(self._rows[index]))[1]

    def has_target(self) -> Bool[np.ndarray, " samples"]:
        """Whether something is meant in each record."""
        tables = [table for split in self._splits for table in split.tables([ONE_SIDE_OF_REGIONS])]
        counts = [pc.list_value_length(table.column("regions")).to_numpy() for table in tables]
        has_target: Bool[np.ndarray, " samples"] = np.concatenate(counts)[self._rows] > 0
        return has_target

    def missing_images(self, most: int) -> list[Path]:
        """Images of the first records that are no files, each once; `most` images are looked for."""
        paths: dict[Path, None] = {}
        for row in self._rows:
            split, example = self._locate(int(row))
            paths[split.image_path(example)] = None
            if len(paths) == most:
                break
        return [path for path in paths if not path.is_file()]

    def has_mask(self) -> Bool[np.ndarray, " samples"]:
        """Whether something is meant in each record, and all of it has a mask."""
        known = []
        for table in (table for split in self._splits for table in split.tables([MASKS_OF_REGIONS])):
            regions = table.column("regions").combine_chunks()
            ends = np.concatenate([[0], np.cumsum(pc.list_value_length(regions).to_numpy())])
            is_known = pc.is_valid(pc.struct_field(pc.list_flatten(regions), [0])).to_numpy(zero_copy_only=False)
            num_known = np.concatenate([[0], np.cumsum(is_known)])[ends]
            known.append((np.diff(ends) > 0) & (np.diff(num_known) == np.diff(ends)))
        has_mask: Bool[np.ndarray, " samples"] = np.concatenate(known)[self._rows]
        return has_mask

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each split, in the order of the indices."""
        return tuple(np.diff(np.searchsorted(self._rows, self._starts)).tolist())

    def load(self) -> None:
        """Read all records now, so that worker processes forked later share the memory."""
        for split in self._splits:
            split.load()

    def _maybe_without_target(self, row: int, example: Example, draw: int) -> Example:
        """The example, or its image with an expression that means nothing in it."""
        if self._expressions is None or self.augment is None or not example.regions:
            return example
        rng = borrows(draw, self.augment.no_target)
        lender = None if rng is None else self._expressions.lender(row, rng)
        return example if lender is None else without_target(example, self._locate(lender)[1])

    def _locate(self, row: int) -> tuple[StoreSplit, Example]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        split = self._splits[number]
        return split, split[row - int(self._starts[number])]


def _open(path: Path, example: Example) -> Image.Image:
    try:
        return open_image(path)
    except ImageError as error:
        if path.exists():
            raise
        raise ImageError(
            error.message,
            where=f"{path} ({example.id})",
            hint="prepare the data again with --images FOLDER, which says where the images are",
        ) from error


def _with_size(example: Example, width: int, height: int, path: Path) -> Example:
    """The example of an image of that size; where its own is unknown, boxes are cut to the image.

    Raises:
        DataError: its own is another one, or a region is not in the image.
    """
    where = f"{path} ({example.id})"
    if example.width > 0 and example.height > 0:
        if (example.width, example.height) == (width, height):
            return example
        raise DataError(
            f"the image is {width} x {height}, the store says {example.width} x {example.height}",
            where=where,
            hint="boxes and masks would not fit; prepare the data again from these images",
        )
    regions = []
    for region in example.regions:
        left, top, right, bottom = region.box_xyxy
        box = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        is_inside = box[0] < box[2] and box[1] < box[3]
        if not is_inside or (region.mask is not None and tuple(region.mask.size) != (height, width)):
            raise DataError(
                f"a region does not fit into its image of {width} x {height}: box {region.box_xyxy}",
                where=where,
                hint="the store does not know the size of this image; prepare-data with --images checks every region",
            )
        regions.append(replace(region, box_xyxy=box))
    return replace(example, width=width, height=height, regions=tuple(regions))


def _rows_of_kinds(splits: Sequence[StoreSplit], kinds: Sequence[str]) -> Int[np.ndarray, " rows"]:
    columns = [split.column("kind") for split in splits]
    found = {kind for column in columns for kind in pc.unique(column).to_pylist() if kind is not None}
    for kind in kinds:
        if kind not in found:
            raise ConfigError(
                f"no expression is of the kind {kind!r}",
                where="data.kinds",
                hint=did_you_mean(kind, sorted(found)),
            )
    wanted = pa.array(list(kinds), type=pa.string())
    keep = np.concatenate([pc.is_in(column, value_set=wanted).to_numpy() for column in columns])
    return np.flatnonzero(keep)
