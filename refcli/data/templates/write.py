"""The expressions about a labelled image: drawn from all certain terms, the same for the same image and seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from refcli.data.language.dice import Dice, stream
from refcli.data.language.terms import Term, certain_targets, members
from refcli.data.language.wording import EXTREMES, RELATIONS, Phrasebook, sentence
from refcli.data.sources.labels import LabelSettings
from refcli.data.templates.graph import LabelGraph, LabelledObject
from refcli.data.templates.proposals import Proposals, Weighted

NO_TARGET = "no_target"
KIND_WEIGHTS: Mapping[str, float] = {
    "attribute": 0.22,
    "superlative": 0.16,
    "ordinal": 0.12,
    "relation": 0.16,
    "nested": 0.06,
    "exclusion": 0.06,
    "plural": 0.10,
    NO_TARGET: 0.12,
}
"""Relative frequency of each kind; a kind that an image does not offer is replaced by another with a target."""
PHRASEBOOK = Phrasebook(
    {},
    RELATIONS | {"above": ("above",), "below": ("below",)},
    {
        "left": EXTREMES["left"][::2],
        "right": EXTREMES["right"][::2],
        "top": ("topmost {}", "{} closest to the top"),
        "bottom": ("bottommost {}", "{} closest to the bottom"),
        "big": EXTREMES["big"],
    },
)
"""The words for photographs. "over" and "under" would suggest contact, "on the far left" an absolute position, and
"highest" height."""


@dataclass(frozen=True)
class DescribedImage:
    """An image and all its labelled objects."""

    key: str
    """The identity of the image in its data set; with the seed, it decides which expressions are drawn."""
    width: int
    height: int
    objects: tuple[LabelledObject, ...]


class WrittenExpression(NamedTuple):
    """One expression about a labelled image."""

    text: str
    kind: str
    targets: tuple[int, ...]
    """Numbers of the objects, ascending; none for "no_target"."""
    term: Term


def write_expressions(
    image: DescribedImage, classes: Collection[str], settings: LabelSettings
) -> tuple[WrittenExpression, ...]:
    """Up to `expressions_per_image` different expressions whose targets are certain.

    Args:
        image: the image and its objects.
        classes: the nouns of all classes that are labelled in the data; "no target" is about one of them.
        settings: the seed, the number of expressions, and whether every object of the classes is labelled.
    """
    graph = LabelGraph(image.objects, image.width, image.height)
    pools = Proposals(graph, classes, is_exhaustive=settings.exhaustive).by_kind()
    dice = Dice(stream(settings.seed, image.key))
    most = settings.expressions_per_image
    num_present = sum(len(pool) for kind, pool in pools.items() if kind != NO_TARGET)
    num_absent = sum(dice.chance(KIND_WEIGHTS[NO_TARGET]) for _ in range(min(most, num_present))) if num_present else 1
    if not num_absent:
        pools.pop(NO_TARGET, None)
    found: dict[str, WrittenExpression] = {}
    while pools and len(found) < most:
        kind = dice.weighted(list(pools), [KIND_WEIGHTS[kind] for kind in pools])
        term = _take(pools[kind], dice)
        text = sentence(term, dice, PHRASEBOOK)
        if text not in found:
            found[text] = WrittenExpression(text, kind, tuple(members(certain_targets(term, graph))), term)
            num_absent -= kind == NO_TARGET
        if not pools[kind] or (kind == NO_TARGET and not num_absent):
            del pools[kind]
    return tuple(found.values())


def _take(pool: list[Weighted], dice: Dice) -> Term:
    """Remove one term, with a probability in proportion to its weight."""
    place = dice.weighted(range(len(pool)), [weight for _, weight in pool])
    return pool.pop(place)[0]
