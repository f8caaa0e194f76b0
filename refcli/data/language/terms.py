"""The meaning of expressions: terms that denote a set of the objects of an image, strictly and loosely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

SIDES = ("left", "right", "top", "bottom")
DIRECTIONS = ("left", "right", "above", "below")


class ObjectDescription(NamedTuple):
    """Attributes by which objects are described; None leaves one open."""

    size: str | None = None
    fill: str | None = None
    colour: str | None = None
    shape: str | None = None
    """The noun: the shape of a synthetic object, the class of a labelled one."""


class Denotation(NamedTuple):
    """The objects that a term refers to, as bits: the certain ones, and those that a generous reader might accept."""

    strict: int
    loose: int


def members(bits: int) -> list[int]:
    """The object numbers of a set, ascending."""
    return [number for number in range(bits.bit_length()) if bits >> number & 1]


class Scenery(Protocol):
    """The objects of an image: what descriptions, places and relations denote among them."""

    def described(self, description: ObjectDescription) -> Denotation:
        """The objects that fit a description."""

    def extreme(self, group: int, axis: str) -> Denotation:
        """The leftmost (rightmost, topmost, bottommost), "big"gest or "small"est member of a group."""

    def nth(self, group: int, rank: int, side: str) -> Denotation:
        """The member of a group that is `rank`-th (from 1) from a side."""

    def related(self, direction: str, anchor: int) -> Denotation:
        """The objects "left" ("right", "above", "below") of an object."""


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


def denote(term: Term, objects: Scenery) -> Denotation:
    """The objects that a term refers to; empty if there are none."""
    if isinstance(term, Extreme | Nth):
        return _denote_ranked(term, objects)
    if isinstance(term, Related):
        return _denote_related(term, objects)
    if isinstance(term, Pair):
        first, second = denote(term.first, objects), denote(term.second, objects)
        return Denotation(first.strict | second.strict, first.loose | second.loose)
    group = objects.described(term.description)
    if isinstance(term, Without):
        out = objects.described(ObjectDescription(**{term.attribute: term.value}))
    elif isinstance(term, Many) and term.exclusion:
        out = objects.described(term.exclusion)
    else:
        return group
    return Denotation(group.strict & ~out.loose, group.loose & ~out.strict)


def _denote_ranked(term: Extreme | Nth, objects: Scenery) -> Denotation:
    """A place in an order is certain if it is the same with and without the objects that fit only loosely."""

    def rank(group: int) -> Denotation:
        if isinstance(term, Extreme):
            return objects.extreme(group, term.axis)
        return objects.nth(group, term.rank, term.side)

    group = objects.described(term.description)
    found = rank(group.loose)
    if group.strict == group.loose:
        return found
    return Denotation(found.strict & rank(group.strict).strict, found.loose)


def _denote_related(term: Related, objects: Scenery) -> Denotation:
    group, anchor = objects.described(term.description), denote(term.anchor, objects)
    loose = 0
    for number in members(anchor.loose):
        loose |= objects.related(term.direction, number).loose & group.loose
    is_certain = anchor.strict == anchor.loose and anchor.strict.bit_count() == 1
    if not is_certain:
        return Denotation(0, loose)
    return Denotation(objects.related(term.direction, members(anchor.strict)[0]).strict & group.strict, loose)


def is_plural(term: Term) -> bool:
    """Whether a term must refer to two objects or more."""
    return isinstance(term, Many | Pair)


def certain_targets(term: Term, objects: Scenery) -> int:
    """The objects that a term certainly refers to, as bits; 0 if there is doubt, no object or the wrong number."""
    strict, loose = denote(term, objects)
    if strict != loose:
        return 0
    count = strict.bit_count()
    fits = count >= 2 if is_plural(term) else count == 1
    return strict if fits else 0
