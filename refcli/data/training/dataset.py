"""The training and evaluation samples of a store, by (index, draw)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int
from PIL import Image
from torch.utils.data import Dataset

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example
from refcli.data.reading.images import open_image
from refcli.data.store.read import Store, StoreSplit
from refcli.data.training.augmentation import draw_view, jitter_colours
from refcli.data.training.negatives import BorrowedExpressions, borrowing_generator, without_target
from refcli.data.training.transforms import View, normalise
from refcli.errors import ConfigError, DataError, ImageError
from refcli.geometry.boxes import BoxXYXY, enclosing_box
from refcli.tables import did_you_mean
from refcli.text.phrases import swap_left_right

MASKS_OF_REGIONS = "regions.list.element.mask_counts"
ONE_SIDE_OF_REGIONS = "regions.list.element.x1"
"""The smallest part of the column that suffices to count regions."""


@dataclass(frozen=True)
class SampleRegions:
    """The regions of a sample, in the model frame."""

    boxes_cxcywh: Float32[np.ndarray, "regions 4"]
    """In fractions of the model frame."""
    masks: Bool[np.ndarray, "regions height width"]
    """A region without a mask fills its box."""
    mask_is_known: Bool[np.ndarray, " regions"]


@dataclass(frozen=True)
class Sample:
    """One (image, expression) pair in the model frame."""

    id: str
    kind: str | None
    expression: str
    image: Float32[np.ndarray, "3 height width"]
    """Normalised RGB; zero outside the image."""
    box_cxcywh: Float32[np.ndarray, " 4"]
    """Encloses all regions, in fractions of the model frame; zero where `exists` is False."""
    mask: Bool[np.ndarray, "height width"]
    """Union of all regions; a region without a mask fills its box."""
    mask_is_known: bool
    """Every region has a mask."""
    exists: bool
    regions: SampleRegions | None = None
    """The regions one by one; None unless the data set was asked for them."""


class GroundingDataset(Dataset[Sample]):
    """Samples in the model frame; deterministic in (index, draw) and picklable for worker processes.

    Args:
        store: the store.
        splits: "dataset:split" names, in the order of the indices.
        tower: gives the size of the model frame.
        augment: augmentation of the training samples; None is the evaluation transform.
        kinds: keep only expressions of these kinds; None keeps all.
        limit: maximum number of samples.
        with_regions: whether samples have their regions one by one, beside the union.

    Raises:
        DataError: an unknown split, or no samples remain.
        ConfigError: a kind that does not occur in any of the splits.
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
        with_regions: bool = False,
    ) -> None:
        self.tower = tower
        self.with_regions = with_regions
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
            DataError: the image has another size than the store states, a mask is damaged, or a region lies outside the
                image.
        """
        index, draw = key
        split, example = self._locate(int(self._rows[index]))
        path = split.image_path(example)
        image = _open(path, example)
        example = _with_size(example, *image.size, path)
        example = self._maybe_without_target(int(self._rows[index]), example, draw)
        try:
            return make_sample(
                image,
                example,
                tower=self.tower,
                augment=self.augment,
                draw=draw,
                with_regions=self.with_regions,
            )
        except DataError as error:
            error.where = error.where or f"{split.name}: {example.id}"
            raise

    def example(self, index: int) -> Example:
        """The record behind a sample."""
        return self._locate(int(self._rows[index]))[1]

    def has_target(self) -> Bool[np.ndarray, " samples"]:
        """Whether each record has a target."""
        tables = [table for split in self._splits for table in split.tables([ONE_SIDE_OF_REGIONS])]
        counts = [pc.list_value_length(table.column("regions")).to_numpy() for table in tables]
        has_target: Bool[np.ndarray, " samples"] = np.concatenate(counts)[self._rows] > 0
        return has_target

    def missing_images(self, most: int) -> list[Path]:
        """The missing files among the first `most` distinct images."""
        paths: dict[Path, None] = {}
        for row in self._rows:
            split, example = self._locate(int(row))
            paths[split.image_path(example)] = None
            if len(paths) == most:
                break
        return [path for path in paths if not path.is_file()]

    def has_mask(self) -> Bool[np.ndarray, " samples"]:
        """Whether each record has a target and all of its regions have masks."""
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
        """Number of samples of each split, in the order of the indices."""
        return tuple(np.diff(np.searchsorted(self._rows, self._starts)).tolist())

    def load(self) -> None:
        """Read all records now, so that worker processes forked later share the memory."""
        for split in self._splits:
            split.load()

    def _maybe_without_target(self, row: int, example: Example, draw: int) -> Example:
        """The example itself, or its image with an expression that has no target in it."""
        if self._expressions is None or self.augment is None or not example.regions:
            return example
        rng = borrowing_generator(draw, self.augment.no_target)
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
            hint="prepare the data again with --images FOLDER, the folder that holds the images",
        ) from error


def _with_size(example: Example, width: int, height: int, path: Path) -> Example:
    """The example with the size of its image; if it was unknown, boxes are clipped to the image.

    Raises:
        DataError: the example states another size, or a region lies outside the image.
    """
    where = f"{path} ({example.id})"
    if example.width > 0 and example.height > 0:
        if (example.width, example.height) == (width, height):
            return example
        raise DataError(
            f"the image is {width} x {height}, the store states {example.width} x {example.height}",
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
                hint="the store lacks the size of this image; prepare-data with --images checks every region",
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


def make_sample(
    image: Image.Image,
    example: Example,
    *,
    tower: TowerSettings,
    augment: AugmentSettings | None,
    draw: int,
    with_regions: bool = False,
) -> Sample:
    """One Sample: by the evaluation transform (OneRef), or augmented.

    Args:
        image: RGB, of the size that the example states.
        example: the expression and its regions.
        tower: gives the size of the model frame.
        augment: the augmentation; None is the evaluation transform.
        draw: seed of the augmentation.
        with_regions: whether to make `Sample.regions`.
    """
    if augment is None:
        model_height, model_width = tower.image_size
        view = View.whole(image.width, image.height, model_width, model_height)
        expression, placed = example.expression, view.image(image)
    else:
        rng = random.Random(draw)
        view = draw_view(rng, example, tower, augment)
        expression = swap_left_right(example.expression) if view.is_mirrored else example.expression
        placed = jitter_colours(rng, view.image(image), augment)
    return Sample(
        id=example.id,
        kind=example.kind,
        expression=expression,
        image=normalise(placed, view.frame),
        box_cxcywh=_box_target(example, view),
        mask=view.mask(example.regions, example.height, example.width),
        mask_is_known=all(region.mask is not None for region in example.regions),
        exists=bool(example.regions),
        regions=_regions(example, view) if with_regions else None,
    )


def _box_target(example: Example, view: View) -> Float32[np.ndarray, " 4"]:
    enclosing = enclosing_box([region.box_xyxy for region in example.regions])
    if enclosing is None:
        return np.zeros(4, dtype=np.float32)
    box: Float32[np.ndarray, " 4"] = _boxes_cxcywh([enclosing], view)[0]
    return box


def _boxes_cxcywh(boxes_xyxy: Sequence[BoxXYXY], view: View) -> Float32[np.ndarray, "n 4"]:
    """Boxes in image pixels -> (centre x, centre y, width, height) in fractions of the model frame."""
    x1, y1, x2, y2 = view.boxes(np.array(boxes_xyxy, dtype=np.float64).reshape(-1, 4)).T
    width, height = view.frame.model_width, view.frame.model_height
    parts = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    boxes: Float32[np.ndarray, "n 4"] = np.stack(parts, axis=1).astype(np.float32)
    return boxes


def _regions(example: Example, view: View) -> SampleRegions:
    masks = [view.mask([region], example.height, example.width) for region in example.regions]
    shape = (0, view.frame.model_height, view.frame.model_width)
    return SampleRegions(
        boxes_cxcywh=_boxes_cxcywh([region.box_xyxy for region in example.regions], view),
        masks=np.stack(masks) if masks else np.zeros(shape, dtype=np.bool_),
        mask_is_known=np.array([region.mask is not None for region in example.regions], dtype=np.bool_),
    )
