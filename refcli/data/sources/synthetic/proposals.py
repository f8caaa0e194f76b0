"""One function per kind of expression that proposes a term for a scene graph, with or without a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from refcli.data.language.dice import Dice
from refcli.data.language.terms import (
    DIRECTIONS,
    SIDES,
    Extreme,
    Many,
    Nth,
    ObjectDescription,
    Pair,
    Plain,
    Related,
    Term,
    Without,
    certain_targets,
    denote,
    members,
)
from refcli.data.sources.synthetic.graph import Graph
from refcli.data.sources.synthetic.palette import FILLS
from refcli.data.sources.synthetic.scene import FILL_WEIGHTS, SceneObject, allowed_fills
from refcli.data.sources.synthetic.shapes import SHAPES

SUBSETS = tuple(
    tuple(name for bit, name in enumerate(("shape", "colour", "fill", "size")) if number >> bit & 1)
    for number in range(16)
)
"""Every choice of attributes."""
GROUP_SUBSETS = (("shape",), ("colour",), ("colour", "shape"), ("fill", "shape"), ("fill",), ("size", "shape"), ())
GROUP_WEIGHTS = (0.42, 0.14, 0.2, 0.08, 0.05, 0.06, 0.05)
"""Descriptions of the groups from which an object is singled out."""
EXCLUDED = ("shape", "colour", "fill")
TRIES_PER_COPY = 4
COPIES = 12
CHANGE_WEIGHTS = {"superlative": (0.15, 0.75, 0.1), "plural": (0.3, 0.6, 0.1)}
"""Kind -> weights of the changes; kinds about groups need changes of whole groups."""


Focus = int
"""Bits of the objects that the term should be about."""
Objects = list[SceneObject]
Palette = tuple[str, ...]
"""Colours that the scene could have."""


def keep(description: ObjectDescription, attributes: tuple[str, ...]) -> ObjectDescription:
    """The description reduced to some of its attributes."""
    size, fill, colour, shape = description
    return ObjectDescription(
        size if "size" in attributes else None,
        fill if "fill" in attributes else None,
        colour if "colour" in attributes else None,
        shape if "shape" in attributes else None,
    )


def _weight(description: ObjectDescription) -> float:
    """How natural a description is: more with a noun and without "solid"."""
    weight = 1.0 if description.shape else 0.3
    return weight * (0.35 if description.fill == "solid" else 1.0)


def _single_out(graph: Graph, number: int, dice: Dice, *, minimal: float) -> ObjectDescription | None:
    """A description that fits only this object; with probability `minimal` one without a redundant word."""
    full, wanted = graph.description_of(number), 1 << number
    if graph.matching(full) != wanted:
        return None
    fitting: list[tuple[tuple[str, ...], ObjectDescription]] = []
    for attributes in SUBSETS[1:]:
        if "size" in attributes and not full.size:
            continue
        description = keep(full, attributes)
        if graph.matching(description) == wanted:
            fitting.append((attributes, description))
    if dice.chance(minimal):
        sets = [set(attributes) for attributes, _ in fitting]
        fitting = [item for item in fitting if not any(other < set(item[0]) for other in sets)]
    descriptions = [description for _, description in fitting]
    return dice.weighted(descriptions, [_weight(description) for description in descriptions])


def _group(graph: Graph, focus: Focus, dice: Dice) -> ObjectDescription:
    """A description of a group, taken from one of the objects in focus."""
    full = graph.description_of(dice.pick(members(focus)))
    return keep(full, dice.weighted(GROUP_SUBSETS, GROUP_WEIGHTS))


def propose_attribute(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """One object by its attributes; of two candidates mostly the one that needs more words."""
    found = []
    for number in dice.sample(members(focus), 2):
        description = _single_out(graph, number, dice, minimal=0.6)
        if description:
            found.append(description)
    if not found:
        return None
    best = max(found, key=lambda item: sum(word is not None for word in item))
    return Plain(best if dice.chance(0.6) else dice.pick(found))


def propose_superlative(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """The extreme member of a group of two or more."""
    description = _group(graph, focus, dice)
    group = graph.matching(description)
    axis = dice.pick((*SIDES, *SIDES, "big", "small", "big", "small"))
    if group.bit_count() < 2 or (description.size and axis not in SIDES):
        return None
    return Extreme(description, axis, _is_half(graph, group, axis))


def _is_half(graph: Graph, group: int, axis: str) -> bool:
    """Whether a group of two has one member on either side of the middle of the image."""
    if axis not in ("left", "right") or group.bit_count() != 2:
        return False
    first, second = (graph.objects[number].x / graph.scene.width for number in graph.ranked(group, "left"))
    return first < 0.42 and second > 0.58


def propose_ordinal(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """The second (third, ...) of a group from a side."""
    description = _group(graph, focus, dice)
    count = graph.matching(description).bit_count()
    if count < 2 or (count == 2 and dice.chance(0.5)):
        return None
    rank = 1 if dice.chance(0.15) else dice.integer(2, min(count, 4))
    return Nth(description, rank, dice.weighted(SIDES, (0.35, 0.35, 0.15, 0.15)))


def propose_relation(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """An object by its place relative to another one, which is described by its attributes."""
    return _relate(graph, focus, dice, _plain_anchor)


def propose_nested(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """An object by its place relative to another one, which is itself described by its place."""
    return _relate(graph, focus, dice, _placed_anchor)


Anchor = Plain | Extreme | Related


def _relate(
    graph: Graph, focus: Focus, dice: Dice, find_anchor: Callable[[Graph, int, Dice], Anchor | None]
) -> Term | None:
    number = dice.pick(members(graph.everything))
    direction = dice.pick(DIRECTIONS)
    strict, loose = graph.related(direction, number)
    candidates = strict & focus
    if not candidates:
        return None
    wanted = dice.pick(members(candidates))
    full = graph.description_of(wanted)
    usable = []
    for attributes in SUBSETS:
        if "size" in attributes and not full.size:
            continue
        description = keep(full, attributes)
        group = graph.matching(description)
        is_needed = group & (group - 1) != 0
        if group & loose == 1 << wanted and (is_needed or dice.chance(0.1)):
            usable.append((description, _weight(description) * 0.5 ** max(0, len(attributes) - 2)))
    if not usable:
        return None
    anchor = find_anchor(graph, number, dice)
    if anchor is None:
        return None
    description = dice.weighted([item for item, _ in usable], [weight for _, weight in usable])
    return Related(description, direction, anchor)


def _plain_anchor(graph: Graph, number: int, dice: Dice) -> Anchor | None:
    description = _single_out(graph, number, dice, minimal=0.75)
    return Plain(description) if description else None


def _placed_anchor(graph: Graph, number: int, dice: Dice) -> Anchor | None:
    """A term that describes an object by its place, because its attributes do not single it out."""
    if dice.chance(0.4):
        description = keep(graph.description_of(number), dice.pick((("shape",), ("shape",), ("colour", "shape"))))
        axes = [axis for axis in (*SIDES, "big", "small") if graph.extreme(graph.matching(description), axis).strict]
        group = graph.matching(description)
        axes = [axis for axis in axes if graph.extreme(group, axis).strict == 1 << number]
        if group.bit_count() < 2 or not axes:
            return None
        return Extreme(description, dice.pick(axes))
    for _ in range(3):
        inner = _relate(graph, 1 << number, dice, _plain_anchor)
        if isinstance(inner, Related) and graph.matching(inner.description).bit_count() > 1:
            return inner
    return None


def propose_exclusion(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """The only member of a group that lacks an attribute of the others."""
    number = dice.pick(members(focus))
    full = graph.description_of(number)
    attributes = dice.weighted(GROUP_SUBSETS, GROUP_WEIGHTS)
    description = keep(full, attributes)
    group = graph.matching(description)
    options = []
    for attribute in EXCLUDED:
        if attribute in attributes or (attribute == "fill" and full.fill == "outlined" and not attributes):
            continue
        others = {getattr(graph.objects[other], attribute) for other in members(group & ~(1 << number))}
        if len(others) == 1 and (value := others.pop()) != getattr(full, attribute):
            options.append((attribute, value))
    if not options:
        return None
    attribute, value = dice.weighted(options, [0.4 if item[1] == "solid" else 1.0 for item in options])
    return Without(description, attribute, value)


def propose_plural(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    """Several objects: a whole group, a group with exceptions, or two objects named one by one."""
    form = dice.weighted(("group", "exception", "pair"), (0.6, 0.2, 0.2))
    if form == "pair":
        return _propose_pair(graph, focus, dice)
    description = _group(graph, focus, dice)
    group = graph.matching(description)
    if description == ObjectDescription():
        return None
    if form == "exception":
        return _propose_exception(graph, description, group, dice)
    count = group.bit_count()
    if count < 2:
        return None
    quantifier = dice.weighted(("all", "both" if count == 2 else "number", "number", "every", ""), (4, 3, 3, 1, 2))
    return Many(description, quantifier, count)


def _propose_exception(graph: Graph, description: ObjectDescription, group: int, dice: Dice) -> Term | None:
    odd = graph.description_of(dice.pick(members(group)))
    free = [name for name in EXCLUDED if getattr(description, name) is None and getattr(odd, name) != "solid"]
    if not free:
        return None
    exclusion = keep(odd, (dice.pick(free),))
    out = (graph.matching(exclusion) & group).bit_count()
    if not out or group.bit_count() - out < 2:
        return None
    return Many(description, dice.pick(("all", "all", "")), group.bit_count() - out, exclusion, out)


def _propose_pair(graph: Graph, focus: Focus, dice: Dice) -> Term | None:
    first = dice.pick(members(focus))
    rest = members(graph.everything & ~(1 << first))
    found = [_single_out(graph, number, dice, minimal=0.8) for number in (first, dice.pick(rest))]
    if found[0] is None or found[1] is None:
        return None
    if dice.chance(0.5):
        found.reverse()
    return Pair(*(Plain(item) for item in found if item))


PROPOSALS: dict[str, Callable[[Graph, Focus, Dice], Term | None]] = {
    "attribute": propose_attribute,
    "superlative": propose_superlative,
    "ordinal": propose_ordinal,
    "relation": propose_relation,
    "nested": propose_nested,
    "exclusion": propose_exclusion,
    "plural": propose_plural,
}


def propose_absent(graph: Graph, kind: str, dice: Dice) -> Term | None:
    """A term of a kind that certainly has a target in an altered copy of the scene and certainly none in the scene.

    It is proposed by the same functions as terms with a target, so that the wording does not reveal the difference.
    """
    for _ in range(COPIES):
        copy, focus = _alter(graph, kind, dice)
        if not focus:
            continue
        for _ in range(TRIES_PER_COPY):
            term = PROPOSALS[kind](copy, focus, dice)
            if term is not None and not denote(term, graph).loose and certain_targets(term, copy):
                return term
    return None


def _alter(graph: Graph, kind: str, dice: Dice) -> tuple[Graph, int]:
    """A copy of the scene in which some objects look different, and the bits of these objects."""
    change = dice.weighted((_alter_some, _replace_value, _swap_values), CHANGE_WEIGHTS.get(kind, (0.5, 0.3, 0.2)))
    objects = change(list(graph.objects), graph.scene.palette, dice)
    focus = sum(1 << number for number, item in enumerate(objects) if item != graph.objects[number])
    return Graph(tuple(objects), graph.scene), focus


def _fitting(item: SceneObject) -> SceneObject:
    """The object, with a fill that its shape allows."""
    return item if item.fill in allowed_fills(item.shape) else replace(item, fill="solid")


def _other_value(objects: Objects, palette: Palette, attribute: str, value: str, dice: Dice) -> str:
    """Another value of an attribute: mostly one that occurs in the scene, else one that could."""
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
        for attribute in dice.sample(("shape", "shape", "colour", "colour", "fill", "size"), dice.integer(1, 2)):
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
    """Swap the looks of two objects: the same objects in other places."""
    first, second = dice.sample(range(len(objects)), 2)
    one, two = objects[first], objects[second]
    objects[first] = replace(one, shape=two.shape, colour=two.colour, fill=two.fill)
    objects[second] = replace(two, shape=one.shape, colour=one.colour, fill=one.fill)
    return objects
