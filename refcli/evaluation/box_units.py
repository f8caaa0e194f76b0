"""Whether the boxes of a prediction file look as if they were not in pixels."""

from __future__ import annotations

from refcli.contracts.prediction import Answer
from refcli.evaluation.box_overlaps import box_area, is_finite

PER_MILLE = 1000
"""What some vision-language models take the sides of an image for."""
NOTABLE_SHARE = 0.1
"""So many boxes beyond their image, of boxes that all lie in 0..1000, are no accident."""


class BoxUnits:
    """Counts boxes by the ranges that all their edges lie in."""

    def __init__(self) -> None:
        self._num_boxes = self._num_fractions = self._num_per_mille = self._num_beyond = 0

    def add(self, answer: Answer) -> None:
        """Count the boxes that a system says; the tight boxes of masks are in pixels, and an empty box is anything."""
        for target in answer.proposals:
            box = target.box_xyxy
            if target.box_is_from_mask or not is_finite(box) or not box_area(box):
                continue
            self._num_boxes += 1
            self._num_fractions += min(box) >= 0 and max(box) <= 1
            self._num_per_mille += min(box) >= 0 and max(box) <= PER_MILLE
            if answer.width and answer.height:
                self._num_beyond += box[0] >= answer.width or box[1] >= answer.height

    def warnings(self) -> list[str]:
        """What to say about them; nothing where they may be pixels."""
        if self._num_boxes and self._num_boxes == self._num_fractions:
            return [
                f"all {self._num_boxes} boxes lie within 0..1: they seem to be fractions of the image; write them in "
                "pixels of the original image (x times width, y times height)"
            ]
        if self._num_per_mille == self._num_boxes and self._num_beyond > NOTABLE_SHARE * self._num_boxes:
            return [
                f"all {self._num_boxes} boxes lie within 0..{PER_MILLE}, and {self._num_beyond} of them outside their "
                f"image: they seem to be in thousandths of the image; write them in pixels of the original image"
            ]
        return []
