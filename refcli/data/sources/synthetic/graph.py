"""The scene graph: sets of objects as bits of an integer, and relations between objects."""

from __future__ import annotations

from itertools import pairwise

from refcli.data.language.terms import SIDES, Denotation, ObjectDescription, members
from refcli.data.sources.synthetic.scene import Scene, SceneObject

CLEAR_RANK = 0.08
"""Least distance of centres, as a share of the short side, for an order to be clear."""
CLEAR_RELATION = 0.10
"""Strictly left (right, above, below) of: by this share of the short side, and by more than in the other direction."""
VAGUE_RELATION = -0.03
"""Loosely left of: by at least this share, which includes level with and slightly right of."""
CLEAR_SIZE = 1.25
"""Least ratio of the biggest object's size to the next."""


class Graph:
    """Attributes and spatial relations of the objects on a scene's canvas: its own objects or an altered copy."""

    def __init__(self, objects: tuple[SceneObject, ...], scene: Scene) -> None:
        self.objects = objects
        self.scene = scene
        self.short_side = scene.short_side
        self.everything = (1 << len(objects)) - 1
        self.has_size_classes = any(item.size_class for item in objects)
        self._bits: dict[str, int] = {}
        for number, item in enumerate(objects):
            for word in (item.shape, item.colour, item.fill, item.size_class):
                if word:
                    self._bits[word] = self._bits.get(word, 0) | 1 << number
        self._related: dict[tuple[str, int], Denotation] = {}

    def description_of(self, number: int) -> ObjectDescription:
        """All attributes of an object."""
        item = self.objects[number]
        return ObjectDescription(item.size_class, item.fill, item.colour, item.shape)

    def matching(self, description: ObjectDescription) -> int:
        """The objects that fit a description. A size word fits none if the sizes do not form two clear classes."""
        bits = self.everything
        for word in description:
            if word:
                bits &= self._bits.get(word, 0)
        return bits

    def described(self, description: ObjectDescription) -> Denotation:
        """As `matching`; loosely, a size word fits every object if the sizes do not form two clear classes."""
        strict = self.matching(description)
        if description.size and not self.has_size_classes:
            return Denotation(strict, self.matching(description._replace(size=None)))
        return Denotation(strict, strict)

    def place(self, number: int, side: str) -> float:
        """Distance of an object's centre from a side, up to a constant of the scene, in pixels."""
        item = self.objects[number]
        if side == "left":
            return item.x
        if side == "right":
            return -item.x
        return item.y if side == "top" else -item.y

    def edge(self, number: int, side: str) -> float:
        """Distance of an object's nearest edge from a side, up to the same constant, in pixels."""
        item = self.objects[number]
        return self.place(number, side) - (item.half_width if side in ("left", "right") else item.half_height)

    def ranked(self, group: int, side: str) -> list[int]:
        """The members of a group by distance from a side, nearest first."""
        return sorted(members(group), key=lambda number: self.place(number, side))

    def extreme(self, group: int, axis: str) -> Denotation:
        """The leftmost (rightmost, topmost, bottommost), "big"gest or "small"est member of a group."""
        if not group:
            return Denotation(0, 0)
        if axis in SIDES:
            order = self.ranked(group, axis)
            first = self.place(order[0], axis) + CLEAR_RANK * self.short_side
            edge = self.edge(order[0], axis)
            near = [n for n in order[1:] if self.place(n, axis) < first or self.edge(n, axis) <= edge]
        else:
            sign = -1 if axis == "big" else 1
            order = sorted(members(group), key=lambda number: sign * self.objects[number].size)
            best = self.objects[order[0]].size
            near = [n for n in order[1:] if (self.objects[n].size / best) ** sign < CLEAR_SIZE]
        winner = 1 << order[0]
        loose = winner | sum(1 << number for number in near)
        return Denotation(0 if near else winner, loose)

    def nth(self, group: int, rank: int, side: str) -> Denotation:
        """The member of a group that is `rank`-th (from 1) from a side; the order up to it must be clear."""
        order = self.ranked(group, side)
        if rank > len(order):
            return Denotation(0, 0)
        places = [self.place(number, side) for number in order[: rank + 1]]
        gap = CLEAR_RANK * self.short_side
        is_clear = all(later - earlier >= gap for earlier, later in pairwise(places))
        return Denotation(1 << order[rank - 1] if is_clear else 0, group if not is_clear else 1 << order[rank - 1])

    def related(self, direction: str, anchor: int) -> Denotation:
        """The objects "left" ("right", "above", "below") of an object."""
        key = (direction, anchor)
        if key not in self._related:
            self._related[key] = self._relate(direction, self.objects[anchor])
        return self._related[key]

    def _relate(self, direction: str, anchor: SceneObject) -> Denotation:
        strict = loose = 0
        clear, vague = CLEAR_RELATION * self.short_side, VAGUE_RELATION * self.short_side
        sign = -1 if direction in ("left", "above") else 1
        sideways = direction in ("left", "right")
        for number, item in enumerate(self.objects):
            if item is anchor:
                continue
            dx, dy = sign * (item.x - anchor.x), sign * (item.y - anchor.y)
            along, across = (dx, dy) if sideways else (dy, dx)
            if along >= vague:
                loose |= 1 << number
                if along >= clear and along >= abs(across):
                    strict |= 1 << number
        return Denotation(strict, loose)


def graph_of(scene: Scene) -> Graph:
    """The graph of a scene."""
    return Graph(scene.objects, scene)
