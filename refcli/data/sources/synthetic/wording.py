"""Wording of terms as English expressions, with some variety."""

from __future__ import annotations

from refcli.data.sources.synthetic.dice import Dice
from refcli.data.sources.synthetic.graph import ObjectDescription
from refcli.data.sources.synthetic.palette import COLOURS, FILLS
from refcli.data.sources.synthetic.shapes import SHAPES
from refcli.data.sources.synthetic.terms import Extreme, Many, Nth, Pair, Plain, Related, Term, Without

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little"),
    "big": ("big", "large"),
    "dotted": ("dotted", "dotted", "spotted"),
    "solid": ("solid", "plain"),
    "crescent": ("crescent", "crescent", "moon"),
    "cross": ("cross", "cross", "plus"),
    "gray": ("gray", "gray", "grey"),
}
TRAILING = {"striped": "with stripes", "dotted": "with dots", "outlined": "with an outline"}
"""Fills that can follow the noun."""
GENERIC_NOUNS = ("object", "object", "thing", "shape", "one")
PLURALS = {"cross": "crosses", "plus": "pluses"}
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
TELEGRAPHIC = 0.12
"""Share of sentences that drop every "the"."""


def sentence(term: Term, dice: Dice) -> str:
    """An expression for a term: one of several wordings, lower case."""
    text = _word(term, dice)
    if dice.chance(TELEGRAPHIC):
        text = " ".join(word for word in text.split() if word != "the")
    return text


def _word(term: Term, dice: Dice) -> str:
    if isinstance(term, Plain):
        return "the " + noun_phrase(term.description, dice, may_have_clause=True)
    if isinstance(term, Extreme):
        return "the " + _word_extreme(term, dice)
    if isinstance(term, Nth):
        rank, noun = RANKS[term.rank - 1], noun_phrase(term.description, dice, noun_first=True)
        return f"the {rank} {noun} from the {term.side}"
    if isinstance(term, Related):
        relation = dice.pick(RELATIONS[term.direction])
        link = dice.pick(("that is ", "which is ")) if dice.chance(0.2) else ""
        return f"the {noun_phrase(term.description, dice)} {link}{relation} {_word_anchor(term.anchor, dice)}"
    if isinstance(term, Without):
        return f"the {noun_phrase(term.description, dice)} {_word_exclusion(term.attribute, term.value, False, dice)}"
    if isinstance(term, Pair):
        return f"{_word_anchor(term.first, dice)} and {_word_anchor(term.second, dice)}"
    return _word_many(term, dice)


def _word_anchor(term: Plain | Extreme | Related, dice: Dice) -> str:
    return "the " + noun_phrase(term.description, dice) if isinstance(term, Plain) else _word(term, dice)


def _word_extreme(term: Extreme, dice: Dice) -> str:
    patterns = EXTREMES[term.axis]
    if term.is_half and term.axis in HALVES and dice.chance(0.5):
        patterns = HALVES[term.axis]
    return dice.pick(patterns).format(noun_phrase(term.description, dice, noun_first=True))


def _word_exclusion(attribute: str, value: str, is_plural: bool, dice: Dice) -> str:
    """ "that is not red", "which are not stars", "without stripes"."""
    words = _choose(value, dice)
    if attribute == "fill" and value in ("striped", "dotted") and dice.chance(0.3):
        return "without stripes" if value == "striped" else "without dots"
    if attribute == "shape":
        words = plural(words) if is_plural else f"{article(words)} {words}"
    return f"{dice.pick(('that', 'that', 'which'))} {'are' if is_plural else 'is'} not {words}"


def _word_many(term: Many, dice: Dice) -> str:
    is_singular = term.quantifier == "every"
    noun = noun_phrase(term.description, dice, is_plural=not is_singular, may_be_one=False)
    number = NUMBERS[term.number]
    head = {
        "all": dice.pick(("all ", "all ", "all the ")),
        "both": dice.pick(("both ", "both ", "both the ")),
        "every": "every ",
        "number": dice.pick((f"the {number} ", f"all {number} ")) if term.number > 2 else f"the {number} ",
        "": "the ",
    }[term.quantifier]
    return head + noun + _word_exception(term, dice)


def _word_exception(term: Many, dice: Dice) -> str:
    if term.exclusion is None:
        return ""
    if term.quantifier == "":
        attribute, value = next((name, value) for name, value in term.exclusion._asdict().items() if value)
        return " " + _word_exclusion(attribute, value, True, dice)
    is_several = term.num_excluded != 1
    others = noun_phrase(term.exclusion, dice, is_plural=is_several, noun="one")
    return f" {dice.pick(('except', 'except', 'but'))} the {others}"


def noun_phrase(
    description: ObjectDescription,
    dice: Dice,
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
        dice: decides between wordings.
        is_plural: use the noun's plural.
        may_have_clause: one attribute may follow as "that is red".
        may_be_one: the generic noun may be "one".
        noun_first: the next words must directly follow the noun: no trailing "with stripes".
        noun: the noun to use where the description has no shape.
    """
    size, fill, colour, shape = description
    if shape:
        noun = _choose(shape, dice)
    elif noun is None:
        noun = dice.pick(GENERIC_NOUNS if may_be_one and (size or fill or colour) else GENERIC_NOUNS[:-1])
    before = [_choose(size, dice)] if size else []
    after = ""
    if fill and fill in TRAILING and not noun_first and dice.chance(0.25):
        after, fill = " " + TRAILING[fill], None
    clause = may_have_clause and not after and (fill or colour) and dice.chance(0.15)
    words = [_choose(word, dice) for word in (fill, colour) if word]
    if len(words) == 2 and dice.chance(0.2):
        words.reverse()
    if clause:
        after = f" {dice.pick(('that', 'that', 'which'))} is {words.pop()}"
    noun = plural(noun) if is_plural else noun
    return " ".join([*before, *words, noun]) + after


def _choose(word: str, dice: Dice) -> str:
    return dice.pick(SYNONYMS[word]) if word in SYNONYMS else word


def plural(noun: str) -> str:
    """The plural of a noun of this language."""
    return PLURALS.get(noun, noun + "s")


def article(noun: str) -> str:
    """The indefinite article that fits a noun."""
    return "an" if noun[0] in "aeo" else "a"


def vocabulary() -> tuple[str, ...]:
    """Every word that an expression can contain, sorted."""
    words = {"the", "a", "an", "and", "that", "which", "is", "are", "not", "without", "stripes", "dots", "from"}
    words |= {"all", "both", "every", "except", "but", "first", "second", "third", "fourth", "top", "bottom"}
    nouns = {synonym for noun in SHAPES for synonym in SYNONYMS.get(noun, (noun,))} | set(GENERIC_NOUNS)
    words |= nouns | {plural(noun) for noun in nouns} | set(NUMBERS[2:])
    for word in (*COLOURS, *FILLS, "small", "big"):
        words |= set(SYNONYMS.get(word, (word,)))
    for patterns in (*RELATIONS.values(), *EXTREMES.values(), *HALVES.values(), tuple(TRAILING.values())):
        words |= {word for pattern in patterns for word in pattern.split() if word != "{}"}
    return tuple(sorted(words))
