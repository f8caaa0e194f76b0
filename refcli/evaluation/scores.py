"""What is kept of every evaluated sample: a row of numbers, so that metrics are exact and any slice is free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refcli.contracts.example import RLE, Example
from refcli.contracts.prediction import Answer
from refcli.errors import DataError
from refcli.geometry.masks import rle_area, rle_intersection, union_masks

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SampleScore:
    """One answered sample against its truth, both in pixels of the original image.

    Several referents, or several predicted targets, count as one: the enclosing box and the union of the masks.
    The box and the mask are those of the model before its existence gate; `says_none` is the gate.
    """

    id: str
    image: str
    kind: str
    has_target: bool
    says_none: bool
    box_iou: float
    """NaN where the sample has no target."""
    mask_is_known: bool
    """The truth has masks (or no target at all) and the model drew one: the sample counts in mask metrics."""
    mask_intersection: int
    mask_union: int


@dataclass(frozen=True)
class Scores:
    """Columns over samples."""

    image: np.ndarray
    """int64: samples of one image have one number."""
    kind: np.ndarray
    has_target: np.ndarray
    says_none: np.ndarray
    box_iou: np.ndarray
    mask_is_known: np.ndarray
    mask_intersection: np.ndarray
    mask_union: np.ndarray

    @classmethod
    def of(cls, samples: Iterable[SampleScore]) -> Scores:
        """Collect rows into columns."""
        rows = list(samples)
        names = np.array([row.image for row in rows], dtype=np.str_)
        return cls(
            image=np.unique(names, return_inverse=True)[1].astype(np.int64),
            kind=np.array([row.kind for row in rows], dtype=np.str_),
            has_target=np.array([row.has_target for row in rows], dtype=np.bool_),
            says_none=np.array([row.says_none for row in rows], dtype=np.bool_),
            box_iou=np.array([row.box_iou for row in rows], dtype=np.float64),
            mask_is_known=np.array([row.mask_is_known for row in rows], dtype=np.bool_),
            mask_intersection=np.array([row.mask_intersection for row in rows], dtype=np.int64),
            mask_union=np.array([row.mask_union for row in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows: np.ndarray) -> Scores:
        """The same columns for a boolean mask or a list of row numbers."""
        return Scores(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def score_sample(example: Example, ungated: Answer) -> SampleScore:
    """Compare an ungated answer with the truth.

    Raises:
        DataError: the picture does not have the size that the data set says.
    """
    if (ungated.width, ungated.height) != (example.width, example.height):
        raise DataError(
            f"the picture is {ungated.width} x {ungated.height}, the data says {example.width} x {example.height}",
            where=example.id,
            hint="prepare the data again from the same pictures",
        )
    truth_box = enclosing_box([region.box_xyxy for region in example.regions])
    answer_box = enclosing_box([target.box_xyxy for target in ungated.targets])
    box_iou = float("nan") if truth_box is None else pair_iou(truth_box, answer_box)
    truth_masks = [region.mask for region in example.regions if region.mask is not None]
    drawn = [target.mask for target in ungated.targets if target.mask is not None]
    mask_is_known = len(truth_masks) == len(example.regions) and len(drawn) == len(ungated.targets)
    intersection, union = _overlap(truth_masks, drawn) if mask_is_known else (0, 0)
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        has_target=bool(example.regions),
        says_none=ungated.no_target,
        box_iou=box_iou,
        mask_is_known=mask_is_known,
        mask_intersection=intersection,
        mask_union=union,
    )


def enclosing_box(boxes: list[Box]) -> Box | None:
    """The smallest xyxy box around all boxes, or None for no boxes."""
    if not boxes:
        return None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def pair_iou(a: Box, b: Box | None) -> float:
    """Intersection over union of two xyxy boxes; 0 where there is no second box or both are empty."""
    if b is None:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _overlap(truth: list[RLE], drawn: list[RLE]) -> tuple[int, int]:
    """(intersection, union) in pixels of the union masks of both sides; an empty side is an empty mask."""
    first = union_masks(truth) if truth else None
    second = union_masks(drawn) if drawn else None
    if first is None or second is None:
        return 0, sum(rle_area(mask) for mask in (first, second) if mask is not None)
    intersection = rle_intersection(first, second)
    return intersection, rle_area(first) + rle_area(second) - intersection
