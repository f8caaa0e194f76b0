"""English nouns: plurals, articles, and the nouns that cannot be counted."""

from __future__ import annotations

import re

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "ox": "oxen", "knife": "knives", "wolf": "wolves", "leaf": "leaves",
    "shelf": "shelves", "loaf": "loaves", "calf": "calves", "scarf": "scarves", "thief": "thieves", "wife": "wives",
    "half": "halves", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "buffalo": "buffaloes",
    "fungus": "fungi", "axis": "axes",
}  # fmt: skip
_SAME = frozenset(
    {"sheep", "deer", "fish", "moose", "bison", "salmon", "trout", "shrimp", "squid", "aircraft", "spacecraft",
     "hovercraft", "series", "species", "offspring"}
)  # fmt: skip
"""Nouns with the same singular and plural."""
_PLURAL = frozenset(
    {
        "people",
        "cattle",
        "police",
        "clothes",
        "men",
        "women",
        "children",
        "feet",
        "teeth",
        "mice",
        "dice",
        "skis",
        "taxis",
    }
)
"""Plural nouns that their ending does not reveal."""
_SINGULAR_WITH_S = frozenset(
    {"bus", "gas", "lens", "canvas", "atlas", "christmas", "texas", "alias", "pancreas", "asbestos", "rhinoceros",
     "cosmos", "tennis", "chess", "news", "bias", "pampas", "chaos"}
)  # fmt: skip
_NO_MEN = frozenset({"human", "talisman", "caiman", "ottoman", "specimen", "abdomen", "regimen"})
_MASS = frozenset(
    {"water", "grass", "sand", "snow", "sky", "hair", "food", "fruit", "bread", "rice", "pasta", "meat", "cheese",
     "butter", "milk", "juice", "beer", "wine", "coffee", "tea", "soup", "salad", "broccoli", "corn", "furniture",
     "luggage", "baggage", "equipment", "clothing", "jewelry", "jewellery", "wood", "metal", "plastic",
     "concrete", "asphalt", "gravel", "mud", "dirt", "soil", "smoke", "fire", "fog", "rain", "ice", "trash", "garbage",
     "rubbish", "litter", "debris", "traffic", "vegetation", "foliage", "cloth", "fabric", "leather", "rust", "mold",
     "mould", "poultry", "seafood", "pork", "beef", "bacon", "ham", "cutlery", "tableware", "software", "hardware",
     "kitchenware", "footwear", "headwear", "headgear", "underwear", "cabinetry", "machinery", "stationery", "cream",
     "paper", "spray", "blood", "tissue", "fat", "oil", "honey", "sugar", "salt", "chocolate", "toast",
     "pepperoni", "spaghetti"}
)  # fmt: skip
"""Mass nouns; so are compounds that end with them ("toilet paper")."""
PEOPLE = frozenset(
    {"person", "people", "man", "woman", "child", "boy", "girl", "baby", "lady", "guy", "kid", "adult", "human",
     "pedestrian", "rider", "cyclist", "bicyclist", "motorcyclist", "driver", "passenger", "player", "skier", "surfer",
     "skater", "skateboarder", "snowboarder", "worker", "officer", "policeman", "policewoman", "fireman", "soldier",
     "nurse", "doctor", "patient", "student", "teacher", "swimmer", "runner", "batter", "pitcher", "catcher", "umpire",
     "referee", "goalkeeper", "spectator", "customer", "farmer", "chef", "waiter",
     "infant", "toddler", "teenager", "bride", "groom", "cowboy", "biker", "climber", "dancer", "athlete", "jockey"}
)  # fmt: skip
_HEAD_ENDS = re.compile(r" (?:of|with|without|in|on|for|at|from|to|by) ")


def head(noun_phrase: str) -> str:
    """The word that names the kind of thing: "light" of "traffic light", "bottle" of "bottle of water"."""
    return _HEAD_ENDS.split(noun_phrase, maxsplit=1)[0].rsplit(" ", 1)[-1]


def plural(noun_phrase: str) -> str:
    """The plural of a singular noun phrase: "traffic lights", "people", "bottles of water"."""
    kind = _HEAD_ENDS.split(noun_phrase, maxsplit=1)[0]
    before, word, after = kind[: len(kind) - len(head(kind))], head(kind), noun_phrase[len(kind) :]
    return before + _plural_word(word) + after


def _plural_word(word: str) -> str:
    if word in _SAME or word.endswith("fish"):
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man") and word not in _NO_MEN:
        return word[:-2] + "en"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return word[:-1] + "ies"
    return word + "s"


def article(noun_phrase: str) -> str:
    """The indefinite article that fits a noun phrase."""
    return "an" if noun_phrase[0] in "aeio" else "a"


def is_plural_noun(noun_phrase: str) -> bool:
    """Whether a noun phrase is plural in form, such as "scissors", "skis" or "street lights"."""
    word = head(noun_phrase)
    if word in _PLURAL:
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _SINGULAR_WITH_S | _SAME


def is_countable(noun_phrase: str) -> bool:
    """Whether "two ..." can be written: not for mass nouns, and not for plurals, one of which may be a pair."""
    return not is_plural_noun(noun_phrase) and head(noun_phrase) not in _MASS


def is_person(noun_phrase: str) -> bool:
    """Whether a noun phrase names a person or people."""
    word = head(noun_phrase)
    return word in PEOPLE or (word.endswith(("man", "men", "person", "people")) and word not in _NO_MEN)
