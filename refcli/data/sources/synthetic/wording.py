"""The words of expressions about synthetic scenes."""

from __future__ import annotations

from refcli.data.language.english import plural
from refcli.data.language.wording import (
    EXTREMES,
    GENERIC_NOUNS,
    HALVES,
    NUMBERS,
    RELATIONS,
    SYNONYMS,
    TRAILING,
    Phrasebook,
)
from refcli.data.sources.synthetic.palette import COLOURS, FILLS
from refcli.data.sources.synthetic.shapes import SHAPES

PHRASEBOOK = Phrasebook(
    SYNONYMS | {"crescent": ("crescent", "crescent", "moon"), "cross": ("cross", "cross", "plus")}, RELATIONS, EXTREMES
)


def vocabulary() -> tuple[str, ...]:
    """Every word that an expression can contain, sorted."""
    words = {"the", "a", "an", "and", "that", "which", "is", "are", "not", "without", "stripes", "dots", "from"}
    words |= {"all", "both", "every", "except", "but", "first", "second", "third", "fourth", "top", "bottom"}
    nouns = {synonym for noun in SHAPES for synonym in PHRASEBOOK.synonyms.get(noun, (noun,))} | set(GENERIC_NOUNS)
    words |= nouns | {plural(noun) for noun in nouns} | set(NUMBERS[2:])
    for word in (*COLOURS, *FILLS, "small", "big"):
        words |= set(PHRASEBOOK.synonyms.get(word, (word,)))
    for patterns in (*RELATIONS.values(), *EXTREMES.values(), *HALVES.values(), tuple(TRAILING.values())):
        words |= {word for pattern in patterns for word in pattern.split() if word != "{}"}
    return tuple(sorted(words))
