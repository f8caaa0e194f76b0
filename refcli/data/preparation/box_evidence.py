"""Evidence about the box format of a split: how many boxes agree with their masks, as read and in other formats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY, box_iou

MIN_IOU = 0.7
"""A box and the extent of its mask disagree below this IoU."""
CLIP_TOLERANCE = 0.5
"""Pixels by which a box may extend beyond its image without being reported."""
REFUSAL_SHARE = 0.9
"""Share of the compared boxes that must disagree for the split to be refused."""
FORMAT_SHARE = 0.5
"""The same share if the masks fit another format: boxes near the origin, or almost square, agree in both formats."""
MIN_OF_A_FORMAT = 5
"""Number of boxes that fit their masks in another format only; that many cannot be chance."""
FAR_IOU = 0.3
"""IoU below which a box and the extent of its mask are at different places, not only drawn loosely."""
MIN_FAR = 2
MIN_DISAGREEING = 10
"""Numbers of masks that are all far from their boxes, or disagree with them; that many cannot be chance."""
MIN_BOXES = 10
DOUBTFUL_SHARE = 0.3
"""Share of boxes extending beyond their images that casts doubt on the format; a correct format has hardly any."""

_FORMATS = {
    "as_corners": "they were read as x, y, width, height, but the masks fit them as corners, x1, y1, x2, y2: "
    "write width and height instead of the second corner",
    "as_sizes": "they were read as corners, x1, y1, x2, y2, but the masks fit them as x, y, width, height: "
    "declare them as such (box_xywh in JSON lines)",
    "as_centres": "the masks fit them if x and y are the centre of the box: write its left and top edge",
    "swapped": "the masks fit them if y comes before x: write x first",
}
"""Other formats of boxes -> hint if the masks fit them."""


@dataclass
class BoxEvidence:
    """Counts of one split; the counts of its parts can be added."""

    counts: Counter[str] = field(default_factory=Counter)

    def merge(self, other: BoxEvidence) -> None:
        """Add the counts of another part of the split."""
        self.counts.update(other.counts)

    def add_mask(self, *, is_read: bool) -> None:
        """Count a mask of the file."""
        self.counts["masks"] += 1
        self.counts["lost_masks"] += not is_read

    def add_box(self, box_xyxy: BoxXYXY, width: int, height: int) -> None:
        """Count a box; an image size of 0 is unknown."""
        x1, y1, x2, y2 = box_xyxy
        self.counts["all_boxes"] += 1
        self.counts["fractions"] += min(box_xyxy) >= 0 and max(box_xyxy) <= 1
        if not width or not height:
            return
        self.counts["boxes"] += 1
        self.counts["beyond_image"] += x2 > width + CLIP_TOLERANCE or y2 > height + CLIP_TOLERANCE
        other_x2, other_y2 = x2 - x1, y2 - y1
        fits = x1 < other_x2 <= width + CLIP_TOLERANCE and y1 < other_y2 <= height + CLIP_TOLERANCE
        self.counts["fitting_as_corners"] += fits

    def add_box_and_mask(self, box_xyxy: BoxXYXY, mask_box_xyxy: BoxXYXY, width: int, height: int) -> bool:
        """Count a box with a mask; returns whether they agree."""
        self.counts["compared"] += 1
        iou = box_iou(_clipped(box_xyxy, width, height), mask_box_xyxy)
        if iou >= MIN_IOU:
            return True
        self.counts["disagreeing"] += 1
        self.counts["far"] += iou < FAR_IOU
        for name, others in _other_readings(box_xyxy).items():
            fits = any(box_iou(_clipped(other, width, height), mask_box_xyxy) >= MIN_IOU for other in others)
            self.counts[name] += fits
        return False

    @property
    def lost_masks(self) -> int:
        """Number of masks of the file that are unreadable or empty."""
        return self.counts["lost_masks"]

    @property
    def masks_are_lost(self) -> bool:
        """Whether most of the masks of the file are not in the store."""
        return 2 * self.counts["lost_masks"] > self.counts["masks"]

    def contradiction(self, name: str, *, is_strict: bool) -> DataError | None:
        """The error if the boxes of the split `name` cannot have the format in which they were read; None otherwise."""
        if self.counts["fractions"] and self.counts["fractions"] == self.counts["all_boxes"]:
            return DataError(
                f"all {self.counts['fractions']:,} boxes of {name} lie between 0 and 1",
                where=name,
                hint="they seem to be fractions of the image; give them in pixels",
            )
        compared, disagreeing = self.counts["compared"], self.counts["disagreeing"]
        if not disagreeing:
            return None
        hint = next((_FORMATS[name] for name in _FORMATS if self.counts[name] >= REFUSAL_SHARE * disagreeing), None)
        is_other_format = hint is not None and disagreeing >= max(FORMAT_SHARE * compared, MIN_OF_A_FORMAT)
        if disagreeing < REFUSAL_SHARE * compared and not is_other_format:
            return None
        is_significant = disagreeing >= MIN_DISAGREEING or self.counts["far"] == compared >= MIN_FAR
        if hint is None and not is_strict and not is_significant:
            return None
        return DataError(
            f"the boxes of {name} contradict the masks: {disagreeing:,} of {compared:,}",
            where=name,
            hint=hint or "check that boxes and masks belong to the same objects and to images of the same size",
        )

    def doubt(self) -> str | None:
        """Evidence against the format of the boxes that needs no masks; None if there is none."""
        boxes, beyond_image = self.counts["boxes"], self.counts["beyond_image"]
        if boxes < MIN_BOXES or beyond_image < DOUBTFUL_SHARE * boxes or self.counts["fitting_as_corners"] < boxes:
            return None
        return (
            f"{beyond_image:,} of {boxes:,} boxes extend beyond their images; read as corners, x1, y1, x2, y2, all "
            "would lie inside"
        )


def _other_readings(box_xyxy: BoxXYXY) -> dict[str, tuple[BoxXYXY, ...]]:
    """The box in other formats of its four numbers, whether they were read as corners or as sizes."""
    x1, y1, x2, y2 = box_xyxy
    width, height = x2 - x1, y2 - y1
    return {
        "as_corners": ((x1, y1, width, height),),
        "as_sizes": ((x1, y1, x1 + x2, y1 + y2),),
        "as_centres": (
            (x1 - width / 2, y1 - height / 2, x1 + width / 2, y1 + height / 2),
            (x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2),
        ),
        "swapped": ((y1, x1, y2, x2),),
    }


def _clipped(box: BoxXYXY, width: int, height: int) -> BoxXYXY:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
