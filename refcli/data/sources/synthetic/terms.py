"""The meaning of expressions: terms that denote a set of objects in any scene graph."""

from __future__ import annotations

from dataclasses import dataclass

from refcli.data.sources.synthetic.graph import Denotation, Graph, ObjectDescription, members


@dataclass(frozen=True, slots=True)
class Plain:
    """An object by its attributes: "the small red star"."""

    description: ObjectDescription


@dataclass(frozen=True, slots=True)
class Extreme:
    """The extreme of a group: "the leftmost red star"; `axis` is a side of the image, "big" or "small"."""

    description: ObjectDescription
    axis: str
    is_half: bool = False
    """Whether the target is the only one of its group in the half of the image named by `axis`."""


@dataclass(frozen=True, slots=True)
class Nth:
    """A place in an order: "the second star from the left"; `rank` counts from 1."""

    description: ObjectDescription
    rank: int
    side: str


@dataclass(frozen=True, slots=True)
class Related:
    """An object beside another: "the star left of ..."; `anchor` is left, right, above or below."""

    description: ObjectDescription
    direction: str
    anchor: Plain | Extreme | Related


@dataclass(frozen=True, slots=True)
class Without:
    """An exclusion: "the star that is not red"; `value` is the excluded value of the field `attribute`."""

    description: ObjectDescription
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Many:
    """A group: "all stars (except the red one)"; `quantifier` is "all", "both", "every", "number" or ""."""

    description: ObjectDescription
    quantifier: str
    number: int
    exclusion: ObjectDescription | None = None
    """Attributes of the excluded objects."""
    num_excluded: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two objects: "the red star and the blue circle"."""

    first: Plain
    second: Plain


Term = Plain | Extreme | Nth | Related | Without | Many | Pair


def denote(term: Term, graph: Graph) -> Denotation:
    """The objects that a term refers to in a scene; empty if there are none."""
    if isinstance(term, Plain):
        return graph.described(term.description)
    if isinstance(term, Extreme):
        return graph.extreme(graph.described(term.description).loose, term.axis)
    if isinstance(term, Nth):
        return graph.nth(graph.described(term.description).loose, term.rank, term.side)
    if isinstance(term, Related):
        return _denote_related(term, graph)
    if isinstance(term, Pair):
        first, second = denote(term.first, graph), denote(term.second, graph)
        return Denotation(first.strict | second.strict, first.loose | second.loose)
    group = graph.described(term.description)
    if isinstance(term, Without):
        out = graph.having(term.value)
    else:
        out = graph.matching(term.exclusion) if term.exclusion else 0
    return Denotation(group.strict & ~out, group.loose & ~out)


def _denote_related(term: Related, graph: Graph) -> Denotation:
    group, anchor = graph.described(term.description), denote(term.anchor, graph)
    loose = 0
    for number in members(anchor.loose):
        loose |= graph.related(term.direction, number).loose & group.loose
    is_certain = anchor.strict == anchor.loose and anchor.strict.bit_count() == 1
    if not is_certain:
        return Denotation(0, loose)
    return Denotation(graph.related(term.direction, members(anchor.strict)[0]).strict & group.strict, loose)


def is_plural(term: Term) -> bool:
    """Whether a term must refer to two objects or more."""
    return isinstance(term, Many | Pair)


def certain_targets(term: Term, graph: Graph) -> int:
    """The objects that a term certainly refers to, as bits; 0 if there is doubt, no object or the wrong number."""
    strict, loose = denote(term, graph)
    if strict != loose:
        return 0
    count = strict.bit_count()
    fits = count >= 2 if is_plural(term) else count == 1
    return strict if fits else 0
