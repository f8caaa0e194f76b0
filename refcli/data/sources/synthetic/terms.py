"""What an expression means: small terms that denote a set of objects in any scene graph."""

from __future__ import annotations

from dataclasses import dataclass

from refcli.data.sources.synthetic.graph import Denotation, Description, Graph, members


@dataclass(frozen=True, slots=True)
class Plain:
    """The small red star."""

    description: Description


@dataclass(frozen=True, slots=True)
class Extreme:
    """The leftmost red star; `axis` is a side of the picture, "big" or "small"."""

    description: Description
    axis: str
    is_half: bool = False
    """The one meant lies in the half of the picture named by `axis`, and no other of its group does."""


@dataclass(frozen=True, slots=True)
class Nth:
    """The second star from the left; `rank` counts from 1."""

    description: Description
    rank: int
    side: str


@dataclass(frozen=True, slots=True)
class Related:
    """The star left of (right of, above, below) what `anchor` means."""

    description: Description
    direction: str
    anchor: Plain | Extreme | Related


@dataclass(frozen=True, slots=True)
class Without:
    """The star that is not red: `attribute` is a field of Description, `value` its excluded value."""

    description: Description
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Many:
    """All stars (that are not red, or: except the red one); `quantifier` is "all", "both", "every", "number" or ""."""

    description: Description
    quantifier: str
    number: int
    exclusion: Description | None = None
    """Attributes of those excluded."""
    num_excluded: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """The red star and the blue circle."""

    first: Plain
    second: Plain


Term = Plain | Extreme | Nth | Related | Without | Many | Pair


def denote(term: Term, graph: Graph) -> Denotation:
    """The objects that a term means in a scene: empty where it means nothing there."""
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
    is_sure = anchor.strict == anchor.loose and anchor.strict.bit_count() == 1
    if not is_sure:
        return Denotation(0, loose)
    return Denotation(graph.related(term.direction, members(anchor.strict)[0]).strict & group.strict, loose)


def is_plural(term: Term) -> bool:
    """True for terms that must mean two objects or more."""
    return isinstance(term, Many | Pair)


def means_surely(term: Term, graph: Graph) -> int:
    """The objects that a term means beyond doubt, as bits; 0 where there is doubt, none, or the wrong number."""
    strict, loose = denote(term, graph)
    if strict != loose:
        return 0
    count = strict.bit_count()
    fits = count >= 2 if is_plural(term) else count == 1
    return strict if fits else 0
