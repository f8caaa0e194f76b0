"""The words of a referring expression that name the referent (subject) and the thing it is related to (object)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Literal, TypeAlias

from refcli.errors import ConfigError

Span: TypeAlias = tuple[int, int]
"""A word's first character and the one after its last."""


@dataclass(frozen=True)
class Roles:
    """The positions of subject and object in an expression; None where there is none."""

    subject: Span | None
    object: Span | None


RoleFinder: TypeAlias = Callable[[str], Roles]

SPACY_MODEL = "en_core_web_md"
"""The model of the official code."""
SPACY_SUBJECTS = frozenset({"subj", "xsubj", "npsubj", "nsubj", "nsubjpass", "csubj", "csubjpass", "agent", "expl"})
SPACY_OBJECTS = frozenset({"dobj", "pobj", "dative", "oprd"})
"""Dependencies that the official code reads as subject and object."""


def role_finder(parser: Literal["rules", "spacy"]) -> RoleFinder:
    """The function that finds the roles: our rules, or spaCy's dependency parser.

    Raises:
        ConfigError: spaCy or its model is needed and not installed.
    """
    return find_roles if parser == "rules" else SpacyRoles()


def find_roles(expression: str) -> Roles:
    """Subject and object by rules for English referring expressions, in any letter case and also without articles.

    The words are split into noun phrases at prepositions, verbs and relative pronouns, and where a modifier follows a
    noun ("man blue shirt"). The noun of a phrase is its last word that is not a known modifier, so unknown words are
    nouns. The first phrase has the subject ("one of the men": the noun after "of"; "the tallest": the word in place of
    a noun). The first later phrase with a noun has the object, else a colour that is worn ("man in blue"). Places in
    the image ("on the left", "top corner") are neither.
    """
    first, *later = _noun_phrases(expression)
    subjects = first.nouns[-1:] or first.modifiers[-1:]
    objects = [phrase.nouns[-1] for phrase in later if phrase.nouns]
    worn = [
        span
        for phrase in later
        for span in phrase.modifiers
        if phrase.opener in ("in", "wearing") and expression[slice(*span)].lower() in COLOURS
    ]
    return Roles(next(iter(subjects), None), next(iter(objects or worn), None))


class SpacyRoles:
    """Subject and object as in the official code, from spaCy: the first word of certain dependencies, and the root
    where there is no subject.

    Raises:
        ConfigError: spaCy or the model is not installed.
    """

    def __init__(self, model: str = SPACY_MODEL) -> None:
        self.model = model
        _parser(model)

    def __call__(self, expression: str) -> Roles:
        return roles_of_parse(_parser(self.model)(expression))


def roles_of_parse(document: Any) -> Roles:  # noqa: ANN401 - a spacy.tokens.Doc; spaCy is optional and not imported here
    """The roles in a document parsed by spaCy."""

    def first(dependencies: frozenset[str]) -> Span | None:
        return next((_span(word) for word in document if word.dep_ in dependencies), None)

    return Roles(first(SPACY_SUBJECTS) or first(frozenset({"ROOT"})), first(SPACY_OBJECTS))


def _span(word: Any) -> Span:  # noqa: ANN401 - a spacy.tokens.Token
    return word.idx, word.idx + len(word.text)


@cache
def _parser(model: str) -> Callable[[str], Any]:
    """spaCy's pipeline, loaded once per process."""
    where = "mrefm.text_masking.parser"
    try:
        spacy = import_module("spacy")
    except ImportError as problem:
        raise ConfigError(
            "spaCy is not installed",
            where=where,
            hint="pip install 'refcli[spacy]', or set mrefm.text_masking.parser=rules",
        ) from problem
    try:
        parser: Callable[[str], Any] = spacy.load(model)
    except OSError as problem:
        raise ConfigError(
            f"spaCy's model {model} is not installed",
            where=where,
            hint=f"python -m spacy download {model}, or set mrefm.text_masking.parser=rules",
        ) from problem
    return parser


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


JOINS = _words("and or of & , . ; : / ( ) is are was were be being been am isn't aren't there appears seems")
"""End a phrase with a noun, and are skipped in a phrase without one ("black and white cat", "this is a cat")."""
BREAKS = _words(
    "in on at by with without w w/ w/o from to under underneath beneath below above over behind beside besides "
    "against along across around onto into off out through toward towards about before after during for as like "
    "than among amongst except but past atop within upon wearing holding carrying eating riding using reading "
    "drinking watching touching cutting feeding pulling pushing throwing swinging catching facing having has have "
    "had showing hitting hit eat throw wear sit does do did will"
)
"""Prepositions and verbs that end any phrase."""
FINITE_VERBS = _words(
    "wears holds carries eats rides uses reads drinks sits stands looks walks plays lays lies leans faces swings "
    "throws catches hits reaches touches shows watches sat stood wore held"
)
"""End a phrase that has a noun; nouns elsewhere."""
RELATIVES = _words("who which that whom whose where while")
SKIPPED = _words(
    "the a an this these those his her its their my your our no any some each every all both other another same "
    "such very most more less only just not almost too so quite here also still even together alone it he she they "
    "him them us you we i me it's that's he's she's there's what left right top bottom middle mid center centre "
    "central upper lower far near front back rear next close closer opposite between inside outside topmost "
    "bottommost lft rt l r btm away up down forward north south east west furthest farthest nearest closest"
)
"""Determiners, pronouns, adverbs and places: never a role."""
FRAME = _words(
    "side sides corner edge row column end background foreground picture photo pic image screen frame viewer"
)
"""Nouns for places in the image, after another noun or a preposition."""
MEASURES = _words(
    "side sides corner edge row rows column end part parts pair pairs couple group groups bunch lot lots set stack "
    "pile piles type kind kinds line number body variety crowd cluster section portion one picture view photo image"
)
"""Nouns that are skipped before "of"."""
COLOURS = _words(
    "red green blue yellow orange purple pink brown black white gray grey cyan tan beige gold golden silver maroon "
    "teal turquoise navy khaki plaid denim camo violet blonde blond brunette"
)
MODIFIERS = COLOURS | _words(
    "one two three four five six seven eight nine ten eleven twelve first second third fourth fifth sixth seventh "
    "eighth ninth tenth last number several many few single half whole none small smaller big bigger large larger "
    "little tiny huge giant tall taller short shorter long longer fat skinny thin thick wide old older young "
    "younger new dark darker light lighter bright plain solid open empty full round bald dirty clean wet dry "
    "visible partial main entire shiny fuzzy blurry clear cute pretty female male asian wooden wood metal plastic "
    "brick curly furry fluffy hairy hot cold high low bare barefoot upright sideways different similar complete"
)
"""Adjectives and numbers, which take the place of the noun in a phrase without one."""
PARTICIPLES = _words(
    "eaten broken worn bitten hidden shown seen cut made bent lit torn frozen thrown drawn laid ridden driven written"
)
ING_OR_ED_NOUNS = _words(
    "building ceiling clothing thing anything something everything nothing painting string railing swing earring "
    "awning icing frosting wedding lighting siding flooring opening sibling topping stuffing pudding dumpling "
    "dressing evening morning sling covering bedding carving drawing writing spring shed weed sled reed seed speed "
    "steed moped"
)
OTHER_NOUNS = _words("chest vest nest forest guest priest rest family belly jelly lily butterfly fly bully dolly")
"""Nouns that look like superlatives or adverbs."""
PEOPLE = _words(
    "man men woman women guy girl boy kid person people lady gentleman dude player batter catcher umpire skier "
    "child children chick"
)
"""People, who never modify the next noun: "man hat" is a man."""

_WORD = re.compile(r"\bw/(?:o\b)?|\d+(?:st|nd|rd|th)?|[^\W\d_]+(?:['’-][^\W\d_]+)*['’]?|[,.;:/&()]")
_VERB_LIKE = re.compile(r"\w{2,}(?:ing|ed)")
_ADVERB_LIKE = re.compile(r"\w{2,}(?:ly|most)")
_MODIFIER_LIKE = re.compile(r"\w{2,}(?:est|less|ous)|\d+\w*")


@dataclass
class _Phrase:
    """A noun phrase under construction."""

    opener: str = ""
    """The word before it; "" for the first phrase and for one that follows a noun directly."""
    nouns: list[Span] = field(default_factory=list)
    modifiers: list[Span] = field(default_factory=list)
    """Words that take the place of a missing noun."""
    num_words: int = 0


def _noun_phrases(expression: str) -> list[_Phrase]:
    """The noun phrases from left to right; the first may be empty."""
    words = [(match[0].lower().replace("’", "'"), match.span()) for match in _WORD.finditer(expression)]
    phrases = [_Phrase()]
    follows_relative = False
    for position, (word, span) in enumerate(words):
        following = words[position + 1][0] if position + 1 < len(words) else ""
        phrase = phrases[-1]
        kind = _kind(word, following, phrase, is_first=len(phrases) == 1)
        if follows_relative and kind == "noun":
            kind = "break"  # "man who skates"
        follows_relative = kind == "break" and word in RELATIVES and word != "whose"
        if kind == "break":
            phrases.append(_Phrase(opener=word))
            continue
        if kind == "possessive":
            phrase.nouns.clear()  # "the tennis player's hat": they belong to the possessor
            kind = "modifier"
        if phrase.nouns and (kind != "noun" or expression[slice(*phrase.nouns[-1])].lower() in PEOPLE):
            phrase = _Phrase(opener=word if kind == "join" else "")
            phrases.append(phrase)
        phrase.num_words += kind != "join"
        if kind == "noun":
            phrase.nouns.append(span)
        elif kind == "modifier":
            phrase.modifiers.append(span)
    return phrases


def _kind(
    word: str, following: str, phrase: _Phrase, *, is_first: bool
) -> Literal["break", "join", "possessive", "noun", "modifier", "pass"]:
    """The effect of a word on the current phrase."""
    has_noun = bool(phrase.nouns)
    tail = word.rsplit("-", 1)[-1]
    is_verb = (_VERB_LIKE.fullmatch(tail) or tail in PARTICIPLES) and tail not in ING_OR_ED_NOUNS
    if word in JOINS:
        return "join"
    if word in BREAKS or (has_noun and (is_verb or word in FINITE_VERBS)):
        return "break"
    if word in RELATIVES:
        return "break" if has_noun or phrase.modifiers or not is_first else "pass"
    if (following == "of" and word in MEASURES) or (word, following) == ("hand", "side"):
        return "pass"
    if word in FRAME and (has_noun or not is_first):
        return "pass"
    if word in ("one", "ones") and phrase.num_words:
        return "noun"
    if word.endswith(("'s", "'")) and word not in SKIPPED:
        return "possessive"
    if is_verb or tail in SKIPPED or (_ADVERB_LIKE.fullmatch(tail) and tail not in OTHER_NOUNS):
        return "pass"
    if tail in MODIFIERS or (_MODIFIER_LIKE.fullmatch(tail) and tail not in OTHER_NOUNS):
        return "modifier"
    return "noun"
