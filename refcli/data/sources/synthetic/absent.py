"""Expressions that mean nothing in a scene: said truly of an altered copy of it."""

from __future__ import annotations

from dataclasses import replace

from refcli.data.sources.synthetic.dice import Dice
from refcli.data.sources.synthetic.graph import Graph
from refcli.data.sources.synthetic.palette import FILLS
from refcli.data.sources.synthetic.proposals import PROPOSALS
from refcli.data.sources.synthetic.scene import FILL_WEIGHTS, SceneObject, allowed_fills
from refcli.data.sources.synthetic.shapes import SHAPES
from refcli.data.sources.synthetic.terms import Term, denote, means_surely

TRIES_PER_COPY = 4
COPIES = 12
CHANGE_WEIGHTS = {"superlative": (0.15, 0.75, 0.1), "plural": (0.3, 0.6, 0.1)}
"""Kinds about whole groups need whole groups altered."""

Objects = list[SceneObject]
Palette = tuple[str, ...]
"""Colours that the scene could have."""


def propose_absent(graph: Graph, kind: str, dice: Dice) -> Term | None:
    """A term of a kind that surely means something in an altered copy of the scene, and surely nothing in the scene.

    The same functions propose it as propose the terms that do mean something, so the wording gives nothing away.
    """
    for _ in range(COPIES):
        copy, focus = _alter(graph, kind, dice)
        if not focus:
            continue
        for _ in range(TRIES_PER_COPY):
            term = PROPOSALS[kind](copy, focus, dice)
            if term is not None and not denote(term, graph).loose and means_surely(term, copy):
                return term
    return None


def _alter(graph: Graph, kind: str, dice: Dice) -> tuple[Graph, int]:
    """A copy of the scene in which some objects look different, and the bits of those that do."""
    change = dice.weighted((_alter_some, _replace_value, _swap_values), CHANGE_WEIGHTS.get(kind, (0.5, 0.3, 0.2)))
    objects = change(list(graph.objects), graph.scene.palette, dice)
    focus = sum(1 << number for number, item in enumerate(objects) if item != graph.objects[number])
    return Graph(tuple(objects), graph.scene), focus


def _fitting(item: SceneObject) -> SceneObject:
    """The object, with a fill that its shape comes in."""
    return item if item.fill in allowed_fills(item.shape) else replace(item, fill="solid")


def _other_value(objects: Objects, palette: Palette, attribute: str, value: str, dice: Dice) -> str:
    """Another value of an attribute: mostly one that the scene has, else one that it could have."""
    values: set[str] = {getattr(item, attribute) for item in objects}
    present = sorted(values - {value})
    if present and dice.chance(0.7):
        return dice.pick(present)
    if attribute == "fill":
        others = [other for other in FILLS if other != value]
        return dice.weighted(others, [FILL_WEIGHTS[other] for other in others])
    return dice.pick([other for other in (SHAPES if attribute == "shape" else palette) if other != value])


def _altered(objects: Objects, palette: Palette, item: SceneObject, attribute: str, dice: Dice) -> SceneObject:
    if attribute == "shape":
        return _fitting(replace(item, shape=_other_value(objects, palette, attribute, item.shape, dice)))
    if attribute == "colour":
        return replace(item, colour=_other_value(objects, palette, attribute, item.colour, dice))
    if attribute == "fill":
        return _fitting(replace(item, fill=_other_value(objects, palette, attribute, item.fill, dice)))
    other = next((other for other in objects if other.size_class not in (None, item.size_class)), item)
    return replace(item, size=other.size, size_class=other.size_class)


def _alter_some(objects: Objects, palette: Palette, dice: Dice) -> Objects:
    """Change one or two attributes of one to three objects."""
    for number in dice.sample(range(len(objects)), dice.weighted((1, 2, 3), (0.5, 0.3, 0.2))):
        for attribute in dice.sample(("shape", "shape", "colour", "colour", "fill", "size"), dice.whole(1, 2)):
            objects[number] = _altered(objects, palette, objects[number], attribute, dice)
    return objects


def _replace_value(objects: Objects, palette: Palette, dice: Dice) -> Objects:
    """Replace one value of an attribute everywhere."""
    model = dice.pick(objects)
    if dice.chance(0.4):
        colour = _other_value(objects, palette, "colour", model.colour, dice)
        return [replace(item, colour=colour) if item.colour == model.colour else item for item in objects]
    shape = _other_value(objects, palette, "shape", model.shape, dice)
    return [_fitting(replace(item, shape=shape)) if item.shape == model.shape else item for item in objects]


def _swap_values(objects: Objects, palette: Palette, dice: Dice) -> Objects:
    """Give two objects each other's looks: the same things in other places."""
    first, second = dice.sample(range(len(objects)), 2)
    one, two = objects[first], objects[second]
    objects[first] = replace(one, shape=two.shape, colour=two.colour, fill=two.fill)
    objects[second] = replace(two, shape=one.shape, colour=one.colour, fill=one.fill)
    return objects
