"""Whether boxes seem to be in other units than the declared ones."""

from __future__ import annotations

from collections.abc import Iterable

from refcli.contracts.prediction import Answer
from refcli.geometry.boxes import BoxXYXY, box_area, is_finite
from refcli.text.vlm_text import INPUT_PIXELS, LARGEST_NUMBER, PIXELS

PER_MILLE = 1000
"""The sides of an image in the coordinates of some vision-language models."""
NOTABLE_SHARE = 0.1
"""A larger share of boxes beyond what the declared space allows suggests other units."""
TOLERANCE = 1.05
"""Boxes a little beyond the image are no sign of other units."""
ADVICE = "--coordinates declares another space"


class BoxUnits:
    """Counts boxes by the range of their numbers.

    Args:
        coordinates: their declared space, a name in `COORDINATES`.
        can_declare: whether `--coordinates` may declare another one.
    """

    def __init__(self, coordinates: str = PIXELS, *, can_declare: bool = False) -> None:
        self._space = coordinates
        self._can_declare = can_declare
        self._num_boxes = self._num_fractions = self._num_per_mille = self._num_beyond = 0

    def add(self, answer: Answer) -> None:
        """Count the boxes of a system; the tight boxes of masks are in pixels."""
        boxes = (target.box_xyxy for target in answer.proposals if not target.box_is_from_mask)
        self.add_boxes(boxes, (answer.width, answer.height))

    def add_boxes(self, boxes_xyxy: Iterable[BoxXYXY], extent: tuple[int, int]) -> None:
        """Count boxes; empty ones fit any unit.

        Args:
            boxes_xyxy: in numbers of the declared space.
            extent: (width, height) of the image or input that they are pixels of; 0: unknown.
        """
        largest = LARGEST_NUMBER.get(self._space)
        for box in boxes_xyxy:
            if not is_finite(box) or not box_area(box):
                continue
            self._num_boxes += 1
            self._num_fractions += min(box) >= 0 and max(box) <= 1
            self._num_per_mille += min(box) >= 0 and max(box) <= PER_MILLE
            if largest is not None:
                self._num_beyond += max(box) > TOLERANCE * largest
            elif all(extent):
                self._num_beyond += box[0] >= extent[0] or box[1] >= extent[1]

    def warnings(self) -> list[str]:
        """A warning if the boxes seem to be in other units than the declared ones."""
        if not self._num_boxes:
            return []
        largest, all_boxes = LARGEST_NUMBER.get(self._space), f"all {self._num_boxes} boxes lie within"
        advice = ADVICE if self._can_declare else "write them in pixels of the original image"
        is_notable = self._num_beyond > NOTABLE_SHARE * self._num_boxes
        if self._num_boxes == self._num_fractions and largest != 1:
            if self._can_declare:
                return [f"{all_boxes} 0..1, but {self._described()} is declared: they seem to be fractions; {advice}"]
            return [
                f"{all_boxes} 0..1: they seem to be fractions of the image; {advice} (x times width, y times height)"
            ]
        if largest is not None and is_notable:
            return [
                f"{self._num_beyond} of {self._num_boxes} boxes lie outside {self._described()}, which is declared: "
                f"they seem to be in other units; {advice}"
            ]
        if largest is None and self._num_per_mille == self._num_boxes and is_notable:
            return [
                f"{all_boxes} 0..{PER_MILLE}, and {self._num_beyond} of them outside their image: they seem to be in "
                f"thousandths of the image; {advice}"
            ]
        return []

    def _described(self) -> str:
        if self._space in LARGEST_NUMBER:
            return f"0..{LARGEST_NUMBER[self._space]:g}"
        return "pixels of the input" if self._space == INPUT_PIXELS else "pixels"
