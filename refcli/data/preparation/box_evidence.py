"""What a whole split shows about the form of its boxes: whether masks agree with them, and as what they would agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY, box_iou

LEAST_AGREEMENT = 0.7
"""IoU of a box and its mask's extent below which the two are listed as disagreeing."""
CLIP_TOLERANCE = 0.5
"""Pixels that a box may reach out of its image without being listed."""
MOST = 0.9
"""Share of the boxes of a split that decides what all of them are."""
HALF = 0.5
"""The same share where the masks speak for one other form: boxes that are near the origin, or almost square, agree with
their masks in both forms."""
ENOUGH_OF_A_FORM = 5
"""So many boxes that all agree with their masks in one other form are no chance."""
FAR = 0.3
"""IoU below which a box and its mask's extent are of different places, and not only drawn loosely."""
ENOUGH_FAR = 2
ENOUGH_DISAGREEING = 10
"""So many masks that all are far from their boxes, or disagree with them, are no chance."""
ENOUGH_BOXES = 10
OFTEN = 0.3
"""Share of boxes that reach out of their images, of which boxes in their own form have next to none."""


_FORMS = {
    "as_corners": "they were read as x, y, width, height, but the masks fit them as corners, x1, y1, x2, y2: "
    "write width and height instead of the second corner",
    "as_sizes": "they were read as corners, x1, y1, x2, y2, but the masks fit them as x, y, width, height: "
    "write them as such (box_xywh in own lines)",
    "as_centres": "the masks fit them if x and y are the centre of the box: write its left and top edge",
    "swapped": "the masks fit them if y comes before x: write x first",
}
"""Other forms of boxes -> what to do if the masks speak for them."""


@dataclass
class BoxEvidence:
    """Counts of one split; those of its parts add up."""

    counts: Counter[str] = field(default_factory=Counter)

    def merge(self, other: BoxEvidence) -> None:
        """Add what another part of the work has found."""
        self.counts.update(other.counts)

    def saw_mask(self, *, is_read: bool) -> None:
        """Count a mask that the file has."""
        self.counts["masks"] += 1
        self.counts["lost_masks"] += not is_read

    def saw_box(self, box_xyxy: BoxXYXY, width: int, height: int) -> None:
        """Count a box; a size of 0 is not known."""
        x1, y1, x2, y2 = box_xyxy
        self.counts["all_boxes"] += 1
        self.counts["fractions"] += min(box_xyxy) >= 0 and max(box_xyxy) <= 1
        if not width or not height:
            return
        self.counts["boxes"] += 1
        self.counts["reaching_out"] += x2 > width + CLIP_TOLERANCE or y2 > height + CLIP_TOLERANCE
        other_x2, other_y2 = x2 - x1, y2 - y1
        fits = x1 < other_x2 <= width + CLIP_TOLERANCE and y1 < other_y2 <= height + CLIP_TOLERANCE
        self.counts["fitting_as_corners"] += fits

    def saw_box_and_mask(self, box_xyxy: BoxXYXY, mask_box_xyxy: BoxXYXY, width: int, height: int) -> bool:
        """Count a box that has a mask; returns whether they agree."""
        self.counts["compared"] += 1
        iou = box_iou(_clipped(box_xyxy, width, height), mask_box_xyxy)
        if iou >= LEAST_AGREEMENT:
            return True
        self.counts["disagreeing"] += 1
        self.counts["far"] += iou < FAR
        for name, others in _other_readings(box_xyxy).items():
            fits = any(box_iou(_clipped(other, width, height), mask_box_xyxy) >= LEAST_AGREEMENT for other in others)
            self.counts[name] += fits
        return False

    @property
    def lost_masks(self) -> int:
        """Masks of the file that could not be read, drawn, or held anything."""
        return self.counts["lost_masks"]

    @property
    def masks_are_lost(self) -> bool:
        """Whether most of the masks that the file has are not in the store."""
        return 2 * self.counts["lost_masks"] > self.counts["masks"]

    def contradiction(self, name: str, *, is_strict: bool) -> DataError | None:
        """Why the boxes of the split `name` cannot be what they are read as; None: they can."""
        if self.counts["fractions"] and self.counts["fractions"] == self.counts["all_boxes"]:
            return DataError(
                f"all {self.counts['fractions']:,} boxes of {name} lie between 0 and 1",
                where=name,
                hint="they seem to be fractions of the image; give them in pixels",
            )
        compared, disagreeing = self.counts["compared"], self.counts["disagreeing"]
        if not disagreeing:
            return None
        hint = next((_FORMS[form] for form in _FORMS if self.counts[form] >= MOST * disagreeing), None)
        is_other_form = hint is not None and disagreeing >= max(HALF * compared, ENOUGH_OF_A_FORM)
        if disagreeing < MOST * compared and not is_other_form:
            return None
        is_no_chance = disagreeing >= ENOUGH_DISAGREEING or self.counts["far"] == compared >= ENOUGH_FAR
        if hint is None and not is_strict and not is_no_chance:
            return None
        return DataError(
            f"the boxes of {name} contradict the masks: {disagreeing:,} of {compared:,}",
            where=name,
            hint=hint or "are boxes and masks of the same objects, and of images of the same size?",
        )

    def doubt(self) -> str | None:
        """What speaks against the form of the boxes where no masks do; None: nothing."""
        boxes, reaching_out = self.counts["boxes"], self.counts["reaching_out"]
        if boxes < ENOUGH_BOXES or reaching_out < OFTEN * boxes or self.counts["fitting_as_corners"] < boxes:
            return None
        return (
            f"{reaching_out:,} of {boxes:,} boxes extend beyond their images; read as corners, x1, y1, x2, y2, all "
            "would lie in them"
        )


def _other_readings(box_xyxy: BoxXYXY) -> dict[str, tuple[BoxXYXY, ...]]:
    """Where a box would be if its four numbers were of another form, whether they were read as corners or as sizes."""
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
