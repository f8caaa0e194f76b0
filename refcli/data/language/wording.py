"""Wording of terms as English expressions, with some variety."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refcli.data.language.dice import Dice
from refcli.data.language.english import article, is_person, is_plural_noun, plural
from refcli.data.language.terms import Extreme, Many, Nth, ObjectDescription, Pair, Plain, Related, Term, Without

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little"),
    "big": ("big", "large"),
    "dotted": ("dotted", "dotted", "spotted"),
    "solid": ("solid", "plain"),
    "gray": ("gray", "gray", "grey"),
}
TRAILING = {"striped": "with stripes", "dotted": "with dots", "outlined": "with an outline"}
"""Fills that can follow the noun."""
GENERIC_NOUNS = ("object", "object", "thing", "shape", "one")
RANKS = ("first", "second", "third", "fourth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "beneath"),
}
EXTREMES = {
    "left": ("leftmost {}", "{} on the far left", "{} furthest to the left"),
    "right": ("rightmost {}", "{} on the far right", "{} furthest to the right"),
    "top": ("topmost {}", "highest {}", "{} at the top"),
    "bottom": ("bottommost {}", "lowest {}", "{} at the bottom"),
    "big": ("biggest {}", "largest {}"),
    "small": ("smallest {}",),
}
HALVES = {"left": ("{} on the left", "left {}"), "right": ("{} on the right", "right {}")}
PRONOUNS = ("that", "that", "which")
TELEGRAPHIC = 0.12
"""Share of sentences that drop every "the"."""


@dataclass(frozen=True)
class Phrasebook:
    """The wordings of a language; a wording that is listed twice is used twice as often."""

    synonyms: Mapping[str, tuple[str, ...]]
    """Value of an attribute -> the words for it; default: the value itself."""
    relations: Mapping[str, tuple[str, ...]]
    """Direction -> the words between an object and the one that it is beside."""
    extremes: Mapping[str, tuple[str, ...]]
    """Axis -> patterns with {} for the noun phrase."""


def sentence(term: Term, dice: Dice, book: Phrasebook) -> str:
    """An expression for a term: one of several wordings, lower case."""
    text = _Writer(dice, book).word(term)
    if dice.chance(TELEGRAPHIC):
        text = " ".join(word for word in text.split() if word != "the")
    return text


@dataclass(frozen=True)
class _Writer:
    """Words terms; the dice decide between wordings."""

    dice: Dice
    book: Phrasebook

    def word(self, term: Term) -> str:
        if isinstance(term, Plain):
            return "the " + self._noun_phrase(term.description, may_have_clause=True)
        if isinstance(term, Extreme):
            return "the " + self._word_extreme(term)
        if isinstance(term, Nth):
            rank, noun = RANKS[term.rank - 1], self._noun_phrase(term.description, noun_first=True)
            return f"the {rank} {noun} from the {term.side}"
        if isinstance(term, Related):
            relation = self.dice.pick(self.book.relations[term.direction])
            link = self._that_is(term.description, ("that", "which")) + " " if self.dice.chance(0.2) else ""
            return f"the {self._noun_phrase(term.description)} {link}{relation} {self._word_anchor(term.anchor)}"
        if isinstance(term, Without):
            noun_phrase = self._noun_phrase(term.description)
            return f"the {noun_phrase} {self._word_exclusion(term, term.attribute, term.value)}"
        if isinstance(term, Pair):
            return f"{self._word_anchor(term.first)} and {self._word_anchor(term.second)}"
        return self._word_many(term)

    def _word_anchor(self, term: Plain | Extreme | Related) -> str:
        return "the " + self._noun_phrase(term.description) if isinstance(term, Plain) else self.word(term)

    def _word_extreme(self, term: Extreme) -> str:
        patterns = self.book.extremes[term.axis]
        if term.is_half and term.axis in HALVES and self.dice.chance(0.5):
            patterns = HALVES[term.axis]
        return self.dice.pick(patterns).format(self._noun_phrase(term.description, noun_first=True))

    def _word_exclusion(self, term: Without | Many, attribute: str, value: str) -> str:
        """ "that is not red", "which are not stars", "without stripes"."""
        is_plural = isinstance(term, Many)
        words = self._choose(value)
        if attribute == "fill" and value in ("striped", "dotted") and self.dice.chance(0.3):
            return "without stripes" if value == "striped" else "without dots"
        if attribute == "shape":
            words = plural(words) if is_plural else f"{article(words)} {words}"
        return f"{self._that_is(term.description, PRONOUNS, is_plural=is_plural)} not {words}"

    def _that_is(self, description: ObjectDescription, pronouns: tuple[str, ...], *, is_plural: bool = False) -> str:
        """ "that is", "which are", "who is"."""
        pronoun, noun = self.dice.pick(pronouns), description.shape or ""
        if is_person(noun):
            pronoun = "who"
        return f"{pronoun} {'are' if is_plural or is_plural_noun(noun) else 'is'}"

    def _word_many(self, term: Many) -> str:
        is_singular = term.quantifier == "every"
        noun = self._noun_phrase(term.description, is_plural=not is_singular, may_be_one=False)
        number = NUMBERS[term.number]
        head = {
            "all": self.dice.pick(("all ", "all ", "all the ")),
            "both": self.dice.pick(("both ", "both ", "both the ")),
            "every": "every ",
            "number": self.dice.pick((f"the {number} ", f"all {number} ")) if term.number > 2 else f"the {number} ",
            "": "the ",
        }[term.quantifier]
        return head + noun + self._word_exception(term)

    def _word_exception(self, term: Many) -> str:
        if term.exclusion is None:
            return ""
        if term.quantifier == "":
            attribute, value = next((name, value) for name, value in term.exclusion._asdict().items() if value)
            return " " + self._word_exclusion(term, attribute, value)
        is_several = term.num_excluded != 1
        others = self._noun_phrase(term.exclusion, is_plural=is_several, noun="one")
        return f" {self.dice.pick(('except', 'except', 'but'))} the {others}"

    def _noun_phrase(
        self,
        description: ObjectDescription,
        *,
        is_plural: bool = False,
        may_have_clause: bool = False,
        may_be_one: bool = True,
        noun_first: bool = False,
        noun: str | None = None,
    ) -> str:
        """A description without its article, such as "small red star with stripes".

        Args:
            description: the attributes; without a shape the noun is a generic one.
            is_plural: use the noun's plural.
            may_have_clause: one attribute may follow as "that is red".
            may_be_one: the generic noun may be "one".
            noun_first: the next words must directly follow the noun: no trailing "with stripes".
            noun: the noun to use where the description has no shape.
        """
        size, fill, colour, shape = description
        if shape:
            noun = self._choose(shape)
        elif noun is None:
            noun = self.dice.pick(GENERIC_NOUNS if may_be_one and (size or fill or colour) else GENERIC_NOUNS[:-1])
        before = [self._choose(size)] if size else []
        after = ""
        if fill and fill in TRAILING and not noun_first and self.dice.chance(0.25):
            after, fill = " " + TRAILING[fill], None
        clause = may_have_clause and not after and (fill or colour) and self.dice.chance(0.15)
        words = [self._choose(word) for word in (fill, colour) if word]
        if len(words) == 2 and self.dice.chance(0.2):
            words.reverse()
        if clause:
            after = f" {self._that_is(description, PRONOUNS, is_plural=is_plural)} {words.pop()}"
        noun = plural(noun) if is_plural else noun
        return " ".join([*before, *words, noun]) + after

    def _choose(self, word: str) -> str:
        synonyms = self.book.synonyms
        return self.dice.pick(synonyms[word]) if word in synonyms else word
