"""Every certain term about the objects of a labelled image, by kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from refcli.data.language.english import is_countable, is_plural_noun
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
from refcli.data.templates.colours import TONES, has_colour
from refcli.data.templates.graph import LabelGraph
from refcli.data.templates.names import may_be_the_same

MAX_RANKED = 8
"""Maximum size of a group in which positions are counted."""
MAX_NUMBER = 6
"""Largest number that an expression states."""
MAX_GROUP = 10
"""Maximum number of objects that an expression refers to."""
MAX_RANK = 4
WITHOUT_UNLABELLED = frozenset({"attribute", "relation", "exclusion", "plural"})
"""Kinds that an unlabelled object cannot make false; of "plural", only pairs of single objects."""

Weighted = tuple[Term, float]
"""A term and its weight in the draw."""
REDUNDANT = 0.3
"""Weight of an expression with more words than it needs."""


class Proposals:
    """The certain terms about one image, as lists of (term, weight); the same order for the same objects."""

    def __init__(self, graph: LabelGraph, classes: Collection[str], *, is_exhaustive: bool) -> None:
        self.graph = graph
        self.is_exhaustive = is_exhaustive
        self.absent = () if not is_exhaustive else self._absent(classes)
        self.descriptions = tuple(self._descriptions())
        self.singles = [one for one in self.descriptions if certain_targets(Plain(one), graph)]
        """Descriptions of one object."""

    def _absent(self, classes: Collection[str]) -> tuple[str, ...]:
        """The classes of which the image certainly has no object."""
        return tuple(noun for noun in sorted(classes) if not self.graph.named(noun).loose)

    def _descriptions(self) -> Iterator[ObjectDescription]:
        """By class; where the class is ambiguous, also by class and colour."""
        for noun in self.graph.nouns:
            strict, loose = self.graph.named(noun)
            plain = ObjectDescription(shape=noun)
            if strict:
                yield plain
            if has_colour(noun) and loose & (loose - 1):
                colours = {self.graph.objects[number].colour for number in members(strict)}
                yield from (plain._replace(colour=colour) for colour in TONES if colour in colours)

    def by_kind(self) -> dict[str, list[Weighted]]:
        """Kind -> its certain terms; kinds without any are left out."""
        makers: Mapping[str, Callable[[], Iterator[Weighted]]] = {
            "attribute": self._attributes,
            "superlative": self._superlatives,
            "ordinal": self._ordinals,
            "relation": self._relations,
            "nested": self._nested,
            "exclusion": self._exclusions,
            "plural": self._plurals,
            "no_target": self._absences,
        }
        kinds = makers if self.is_exhaustive else [kind for kind in makers if kind in WITHOUT_UNLABELLED]
        found = {kind: list(makers[kind]()) for kind in kinds}
        return {kind: terms for kind, terms in found.items() if terms}

    def _certain(self, terms: Iterator[Weighted]) -> Iterator[Weighted]:
        return ((term, weight) for term, weight in terms if certain_targets(term, self.graph))

    def _attributes(self) -> Iterator[Weighted]:
        return ((Plain(one), 1.0) for one in self.singles)

    def _groups(self) -> Iterator[tuple[ObjectDescription, int]]:
        """Descriptions that fit several objects, and how many; of a colour, only the certain ones are counted."""
        for description in self.descriptions:
            if description.colour is None:
                count = self.graph.count(description.shape or "")
            else:
                count = self.graph.described(description).strict.bit_count()
            if count > 1:
                yield description, count

    def _superlatives(self) -> Iterator[Weighted]:
        return self._certain((term, 1.0 if term.axis in ("left", "right", "big") else 0.4) for term in self._extremes())

    def _extremes(self) -> Iterator[Extreme]:
        for description, _ in self._groups():
            noun = description.shape or ""
            if not (is_countable(noun) or is_plural_noun(noun)):
                continue
            group = self.graph.described(description).loose
            for axis in (*SIDES, "big") if is_countable(noun) else SIDES:
                yield Extreme(description, axis, axis in ("left", "right") and self.graph.halves(group))

    def _ordinals(self) -> Iterator[Weighted]:
        terms = (
            (Nth(description, rank, side), 1.0)
            for description, count in self._groups()
            if is_countable(description.shape or "") and 3 <= count <= MAX_RANKED
            for side in self._sides_of_row(description)
            for rank in range(1, min(count, MAX_RANK) + 1)
        )
        return self._certain(terms)

    def _sides_of_row(self, description: ObjectDescription) -> tuple[str, ...]:
        """The sides from which a reader counts a group: left and right of a row, top and bottom of a column."""
        centres = [self.graph.objects[number].centre for number in members(self.graph.described(description).loose)]
        across, down = (max(places) - min(places) for places in zip(*centres, strict=True))
        return SIDES[:2] if across >= down else SIDES[2:]

    def _relations(self) -> Iterator[Weighted]:
        return self._certain(self._related([Plain(one) for one in self.singles]))

    def _nested(self) -> Iterator[Weighted]:
        return self._certain(self._related([term for term in self._extremes() if certain_targets(term, self.graph)]))

    def _related(self, anchors: list[Plain] | list[Extreme]) -> Iterator[Weighted]:
        for description in self.descriptions:
            weight = REDUNDANT if description in self.singles else 1.0
            for anchor in anchors:
                if self._are_alike(description, anchor.description):
                    continue
                for direction in DIRECTIONS:
                    yield Related(description, direction, anchor), weight

    def _are_alike(self, one: ObjectDescription, other: ObjectDescription) -> bool:
        return may_be_the_same(one.shape or "", other.shape or "")

    def _exclusions(self) -> Iterator[Weighted]:
        terms = (
            (Without(description, "colour", colour), 1.0)
            for description, _ in self._groups()
            if description.colour is None and has_colour(description.shape or "")
            for colour in TONES
            if self.graph.described(description._replace(colour=colour)).strict
        )
        return self._certain(terms)

    def _plurals(self) -> Iterator[Weighted]:
        if self.is_exhaustive:
            yield from self._certain(self._many())
        for place, first in enumerate(self.singles):
            for second in self.singles[place + 1 :]:
                if denote(Plain(first), self.graph) != denote(Plain(second), self.graph):
                    yield Pair(Plain(first), Plain(second)), REDUNDANT

    def _many(self) -> Iterator[Weighted]:
        for description, count in self._groups():
            if is_countable(description.shape or "") and count <= MAX_GROUP:
                for quantifier in ("both",) if count == 2 else ("all", "every"):
                    yield Many(description, quantifier, count), 1.0
                if count <= MAX_NUMBER:
                    yield Many(description, "number", count), 1.0

    def _absences(self) -> Iterator[Weighted]:
        """Terms about classes, colours and places that the image certainly lacks."""
        per_class = 1.0 / max(1, len(self.absent))
        anchors = [Plain(one) for one in self.singles]
        for noun in self.absent:
            absent = ObjectDescription(shape=noun)
            yield Plain(absent), per_class
            for anchor in anchors:
                for direction in DIRECTIONS:
                    yield Related(absent, direction, anchor), per_class / (4 * len(anchors))
            if is_countable(noun):
                axes = (*SIDES[:2], "big")
                yield from ((Extreme(absent, axis), 0.3 * per_class / len(axes)) for axis in axes)
                yield Many(absent, "both", 2), 0.15 * per_class
                yield Many(absent, "all", 2), 0.15 * per_class
        yield from ((term, 0.3) for term, _ in self._false_terms() if not denote(term, self.graph).loose)

    def _false_terms(self) -> Iterator[Weighted]:
        """Terms about objects that are there, in another colour or at another place."""
        for noun in self.graph.nouns:
            if has_colour(noun):
                yield from ((Plain(ObjectDescription(None, None, colour, noun)), 1.0) for colour in TONES)
        yield from self._related([Plain(one) for one in self.singles])
