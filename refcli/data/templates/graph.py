"""The labelled objects of an image: which ones a description, a place or a relation certainly, or possibly, denotes.

Boxes of photographs overlap and differ in size, so that places are compared by edges and centres, with margins. Objects
that a reader may overlook or count in another way are only loosely there: they are no target, and they make every
expression uncertain that depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refcli.data.language.terms import Denotation, ObjectDescription, members
from refcli.data.templates.names import may_be_the_same
from refcli.geometry.boxes import BoxXYXY, box_area, box_iou

CLEAR_RANK = 0.08
"""Minimum distance of centres for a clear order, as a share of the image's side along the axis."""
CLEAR_EDGES = 0.02
"""Minimum distance of the left edges, and of the right edges, for a clear order from left to right."""
CLEAR_AREA = 2.25
"""Minimum ratio of the biggest object's area to the next."""
CLEAR_SIDE = 1.2
"""Minimum ratio of the longer sides of the biggest object and the next."""
CLEAR_RELATION = 0.05
"""For "left of" and the like: minimum distance of the centres, as a share of the image's short side."""
MAX_INTRUSION = 0.1
"""Maximum overlap of the boxes in this direction, as a share of the narrower one."""
MIN_ALIGNED = 0.0
"""Minimum overlap in height, as a share of the lower box: the boxes are side by side."""
MIN_ALIGNED_ABOVE = 0.5
"""As `MIN_ALIGNED`, of the narrower one's width, for above and below."""
MAX_GAP_ABOVE = 0.1
"""For "above" and "below": maximum gap of the boxes, as a share of the short side. Further up is often further away."""
VAGUE_RELATION = 0.04
"""A reader might accept "left of" if the centre or left edge is at most this share further right."""
TINY_SIDE = 0.035
"""Objects whose shorter side is below this share of the image's short side are easily overlooked."""
TINY_AREA = 0.004
"""So are objects whose box is below this share of the image."""
CUT_AREA = 0.02
"""So are objects that the border cuts and whose box is below this share of the image."""
SAME_BOX = 0.7
"""IoU from which two boxes of classes that may be the same may be one object that is labelled twice."""
_TOUCH = 1.0
"""Distance in pixels at which a box touches the border."""


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One labelled object."""

    noun: str | None
    """None: the class has no name in English; the object may be anything."""
    box_xyxy: BoxXYXY
    area: float
    """Pixels of its mask, or of its box."""
    is_crowd: bool = False
    """Whether it is a group that is not labelled one by one, or hard to recognise."""
    colour: str | None = None
    """Its colour, if it is certain."""
    possible_colours: frozenset[str] | None = None
    """The colours that a reader might see; None: any."""

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        left, top, right, bottom = self.box_xyxy
        return (left + right) / 2, (top + bottom) / 2

    def may_be(self, colour: str) -> bool:
        """Whether a reader might give the object this colour."""
        return self.possible_colours is None or colour in self.possible_colours


class LabelGraph:
    """The objects of an image as sets of bits; a `Scenery`."""

    def __init__(self, objects: Sequence[LabelledObject], width: int, height: int) -> None:
        self.objects = tuple(objects)
        self.width, self.height = width, height
        self.doubtful = self._bits(lambda item: self._is_doubtful(item))
        for number, item in enumerate(self.objects):
            for other, one in enumerate(self.objects[:number]):
                is_twice = box_iou(item.box_xyxy, one.box_xyxy) > SAME_BOX
                if is_twice and (not (item.noun and one.noun) or may_be_the_same(item.noun, one.noun)):
                    self.doubtful |= 1 << number | 1 << other
        self.nouns = tuple(dict.fromkeys(item.noun for item in self.objects if item.noun))
        self._named = {noun: self.named(noun) for noun in self.nouns}
        self._related: dict[tuple[str, int], Denotation] = {}

    def _bits(self, fits: Callable[[LabelledObject], bool]) -> int:
        return sum(1 << number for number, item in enumerate(self.objects) if fits(item))

    def _is_doubtful(self, item: LabelledObject) -> bool:
        left, top, right, bottom = item.box_xyxy
        area = box_area(item.box_xyxy) / (self.width * self.height)
        if item.noun is None or item.is_crowd or area < TINY_AREA:
            return True
        is_thin = min(right - left, bottom - top) < TINY_SIDE * min(self.width, self.height)
        return is_thin or (area < CUT_AREA and self._is_cut(item))

    def _is_cut(self, item: LabelledObject) -> bool:
        """Whether the image's border may cut an object."""
        left, top, right, bottom = item.box_xyxy
        return min(left, top) <= _TOUCH or right >= self.width - _TOUCH or bottom >= self.height - _TOUCH

    def named(self, noun: str) -> Denotation:
        """The objects of a class; loosely, also those that may go by its name."""
        strict = self._bits(lambda item: item.noun == noun) & ~self.doubtful
        loose = self._bits(lambda item: item.noun is None or may_be_the_same(noun, item.noun))
        return Denotation(strict, loose)

    def count(self, noun: str) -> int:
        """The number of objects of a class, with those that are easily overlooked."""
        return sum(item.noun == noun for item in self.objects)

    def described(self, description: ObjectDescription) -> Denotation:
        """The objects that fit a noun, a colour, or both."""
        noun, colour = description.shape, description.colour
        everything = (1 << len(self.objects)) - 1
        strict, loose = Denotation(everything & ~self.doubtful, everything)
        if noun:
            strict, loose = self._named.get(noun) or self.named(noun)
        if colour:
            strict &= self._bits(lambda item: item.colour == colour)
            loose &= self._bits(lambda item: item.may_be(colour))
        return Denotation(strict, loose)

    def extreme(self, group: int, axis: str) -> Denotation:
        """The member of a group that comes clearly first along an axis; no member if there is doubt."""
        numbers = members(group) if axis != "small" else []  # an object may look small because it is far away
        firsts = [
            number
            for number in numbers
            if all(self._precedes(number, other, axis) for other in numbers if other != number)
        ]
        winner = 1 << firsts[0] if len(firsts) == 1 and not self.doubtful >> firsts[0] & 1 else 0
        return Denotation(winner, winner or group)

    def nth(self, group: int, rank: int, side: str) -> Denotation:
        """The member of a group that is `rank`-th (from 1) from a side; the order up to it must be clear."""
        order = sorted(members(group), key=lambda number: self._place(number, side))
        if rank > len(order):
            return Denotation(0, 0)
        is_clear = all(
            self._precedes(one, other, side) for place, one in enumerate(order[:rank]) for other in order[place + 1 :]
        )
        target = 1 << order[rank - 1]
        if not is_clear or self.doubtful & sum(1 << number for number in order[:rank]):
            return Denotation(0, group)
        return Denotation(target, target)

    def related(self, direction: str, anchor: int) -> Denotation:
        """The objects "left" ("right", "above", "below") of an object."""
        key = (direction, anchor)
        if key not in self._related:
            others = [number for number in range(len(self.objects)) if number != anchor]
            strict = sum(1 << number for number in others if self._is_beside(direction, number, anchor))
            loose = sum(1 << number for number in others if self._may_be_beside(direction, number, anchor))
            self._related[key] = Denotation(strict & ~self.doubtful, strict | loose)
        return self._related[key]

    def halves(self, group: int) -> bool:
        """Whether a group of two has one member in the left half of the image and one in the right half."""
        edges = sorted((self.objects[number].box_xyxy for number in members(group)), key=lambda box: box[0])
        middle = self.width / 2
        return len(edges) == 2 and edges[0][2] <= middle <= edges[1][0]

    def _span(self, number: int, side: str) -> tuple[float, float]:
        """The distances of an object's near and far edge from a side of the image, in pixels."""
        left, top, right, bottom = self.objects[number].box_xyxy
        return {
            "left": (left, right),
            "right": (self.width - right, self.width - left),
            "top": (top, bottom),
            "bottom": (self.height - bottom, self.height - top),
        }[side]

    def _place(self, number: int, side: str) -> float:
        near, far = self._span(number, side)
        return (near + far) / 2

    def _precedes(self, one: int, other: int, axis: str) -> bool:
        """Whether an object is clearly nearer to a side than another, or clearly bigger."""
        if axis == "big":
            return self._is_bigger(one, other)
        side = self.width if axis in ("left", "right") else self.height
        near, far = self._span(one, axis)
        other_near, other_far = self._span(other, axis)
        if self.objects[other].is_crowd:  # its members are anywhere in the box
            return far <= other_near
        is_apart = (other_near + other_far - near - far) / 2 >= CLEAR_RANK * side
        return is_apart and min(other_near - near, other_far - far) >= CLEAR_EDGES * side

    def _is_bigger(self, one: int, other: int) -> bool:
        """Whether an object is clearly bigger than another in the image, by its box, its pixels and its longer side."""
        big, small = self.objects[one], self.objects[other]
        return (
            box_area(big.box_xyxy) >= CLEAR_AREA * box_area(small.box_xyxy)
            and big.area >= CLEAR_AREA * small.area
            and _longer_side(big.box_xyxy) >= CLEAR_SIDE * _longer_side(small.box_xyxy)
        )

    def _is_beside(self, direction: str, number: int, anchor: int) -> bool:
        side, across, min_aligned, max_gap = _RELATIONS[direction]
        near, far = self._span(number, side)
        anchor_near, anchor_far = self._span(anchor, side)
        distance = (anchor_near + anchor_far - near - far) / 2
        sideways = self._place(number, across) - self._place(anchor, across)
        narrow = min(far - near, anchor_far - anchor_near)
        first, second = self._span(number, across), self._span(anchor, across)
        shared = min(first[1], second[1]) - max(first[0], second[0])
        return (
            distance >= CLEAR_RELATION * min(self.width, self.height)
            and distance >= abs(sideways)
            and -max_gap * min(self.width, self.height) <= far - anchor_near <= MAX_INTRUSION * narrow
            and shared >= min_aligned * min(first[1] - first[0], second[1] - second[0])
        )

    def _may_be_beside(self, direction: str, number: int, anchor: int) -> bool:
        side = _RELATIONS[direction][0]
        margin = VAGUE_RELATION * min(self.width, self.height)
        is_centre_beside = self._place(number, side) < self._place(anchor, side) + margin
        return is_centre_beside or self._span(number, side)[0] < self._span(anchor, side)[0] + margin


def _longer_side(box: BoxXYXY) -> float:
    return max(box[2] - box[0], box[3] - box[1])


_RELATIONS = {
    "left": ("left", "top", MIN_ALIGNED, math.inf),
    "right": ("right", "top", MIN_ALIGNED, math.inf),
    "above": ("top", "left", MIN_ALIGNED_ABOVE, MAX_GAP_ABOVE),
    "below": ("bottom", "left", MIN_ALIGNED_ABOVE, MAX_GAP_ABOVE),
}
"""Relation -> the side that the object is nearer to, a side across, the part that both must share there, and the
largest gap."""
