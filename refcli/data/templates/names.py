"""Class names as English nouns, and the classes that may name the same object."""

from __future__ import annotations

import re
from functools import lru_cache

from refcli.data.language.english import head, is_person

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
_VOWEL = re.compile("[aeiouy]")
_ABBREVIATIONS = frozenset({"tv", "dvd", "cd", "pc", "lcd"})
"""Nouns without a vowel."""
_ARTICLES = frozenset({"the", "a", "an"})
_MAX_WORDS = 4
_NOT_A_KIND = frozenset(
    {"class", "category", "cls", "label", "id", "object", "objects", "obj", "item", "items", "thing", "things", "stuff",
     "entity", "target", "instance", "other", "others", "misc", "miscellaneous", "various", "unknown", "undefined",
     "unclear", "unlabeled", "unlabelled", "background", "foreground", "ignore", "ignored", "ignoreregion", "dontcare",
     "dont", "care", "null", "none", "na", "nan", "nil", "empty", "void", "default", "positive", "negative", "test",
     "no", "not", "non", "without", "and", "or", "true", "false", "group", "crowd"}
)  # fmt: skip
"""Words of names that are no noun for one object: placeholders, collective classes, and denials such as "no_helmet"."""

_FAMILIES: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "vehicle car automobile truck lorry van minivan bus minibus suv pickup jeep taxi cab limousine ambulance "
        "trailer caravan train tram trolley locomotive wagon carriage cart",
        "vehicle bicycle bike cycle motorcycle motorbike moped scooter tricycle e-bike",
        "vehicle boat ship yacht ferry kayak canoe raft vessel sailboat motorboat barge dinghy",
        "vehicle airplane aeroplane plane aircraft jet helicopter glider drone",
        "animal pet dog puppy cat kitten horse pony foal donkey mule zebra cow cattle bull ox calf buffalo bison sheep "
        "lamb goat elephant bear giraffe deer moose antelope pig monkey rabbit hare mouse rat squirrel fox wolf lion "
        "tiger leopard cheetah panda kangaroo camel llama alpaca mammal livestock wildlife",
        "animal bird chicken hen rooster duck goose swan pigeon seagull gull parrot eagle owl penguin ostrich turkey "
        "crow sparrow poultry",
        "animal fish shark dolphin whale seal turtle crab lobster shrimp",
        "animal insect bee butterfly ant beetle bug spider fly",
        "animal reptile snake lizard crocodile alligator frog toad turtle tortoise",
        "furniture chair armchair seat stool bench couch sofa loveseat settee recliner ottoman pew bed futon",
        "furniture table desk counter countertop bench stand nightstand worktop",
        "furniture cabinet cupboard shelf bookshelf bookcase drawer dresser wardrobe closet sideboard locker rack",
        "container cup mug glass goblet tumbler teacup bowl beaker",
        "container bottle jar flask jug pitcher vase carafe thermos can tin",
        "container bowl dish plate tray saucer basin pan pot wok",
        "container box carton crate package parcel bin basket bucket can barrel",
        "bag backpack rucksack handbag purse suitcase luggage baggage briefcase satchel duffel pouch sack tote wallet",
        "cutlery silverware utensil fork knife spoon spatula ladle chopsticks",
        "knife blade sword dagger scissors",
        "screen monitor tv television display computer laptop notebook tablet ipad",
        "phone cellphone telephone smartphone mobile tablet remote",
        "computer pc keyboard",
        "stove oven cooker microwave toaster range",
        "refrigerator fridge freezer",
        "sink basin washbasin bathtub tub toilet",
        "plant flower tree bush shrub houseplant potted-plant bouquet vegetation foliage grass vase pot planter",
        "food fruit apple orange tangerine mandarin grapefruit lemon lime peach pear plum banana mango tomato",
        "food vegetable broccoli cauliflower carrot cabbage lettuce cucumber pepper potato onion tomato pumpkin salad",
        "food bread sandwich burger hamburger hot-dog sub bun roll bagel toast pizza pie cake cupcake muffin donut "
        "doughnut pastry cookie biscuit croissant dessert",
        "ball football basketball baseball volleyball frisbee disc balloon",
        "bat racket racquet stick club",
        "skis ski snowboard surfboard skateboard board longboard sled",
        "hat cap helmet hood beanie headgear",
        "shirt t-shirt jacket coat sweater hoodie blouse dress vest suit uniform clothes clothing top",
        "pants trousers jeans shorts skirt leggings",
        "shoe shoes sneaker sneakers boot boots sandal sandals slipper slippers heel heels footwear",
        "glasses sunglasses eyeglasses goggles spectacles",
        "tie necktie bowtie scarf",
        "sign signboard billboard stop-sign placard poster banner board",
        "light lamp lantern bulb streetlight headlight traffic-light spotlight",
        "pole post lamppost streetlight column pillar",
        "building house skyscraper tower church barn shed hut apartment",
        "road street highway lane path pavement sidewalk",
        "book magazine notebook newspaper brochure",
        "painting photo photograph poster frame mirror image",
        "curtain blind shade drape",
        "rug carpet mat",
        "pillow cushion",
        "blanket sheet quilt towel cloth",
        "toy doll teddy bear figurine",
        "umbrella parasol kite parachute",
        "clock watch",
        "pen pencil marker crayon",
    )
)
"""Words for things that can be the same object, or are confused; a class belongs to the families of its head noun."""


def readable_noun(class_name: str) -> str | None:
    """A class name as a lower-case English noun phrase without an article: "the cell_phone" and "CellPhone" give
    "cell phone".

    None for names that are no words (with digits, without a vowel, of one letter, not in Latin letters), that name
    several things ("cup/mug"), or that name no kind of thing ("other", "DontCare", "no_helmet").
    """
    spaced = _CAMEL_CASE.sub(" ", _BRACKETS.sub("", class_name)).replace("_", " ")
    words = spaced.lower().split()
    if len(words) > 1 and words[0] in _ARTICLES:
        del words[0]
    if not 1 <= len(words) <= _MAX_WORDS or not all(map(_is_word, words)):
        return None
    if not _NOT_A_KIND.isdisjoint(part for word in words for part in word.split("-")):
        return None
    return " ".join(words)


def _is_word(word: str) -> bool:
    if word in _ABBREVIATIONS:
        return True
    return _WORD.fullmatch(word) is not None and _VOWEL.search(word) is not None and (len(word) > 1 or word == "a")


@lru_cache(maxsize=1 << 16)
def may_be_the_same(one: str, other: str) -> bool:
    """Whether an object of one class might be named by the noun of the other.

    Nouns with the same head are ("wine glass" and "glass"), nouns of people are, one that contains the other is, and
    those of a family such as "vehicle car truck ..." are.
    """
    if one == other:
        return True
    first, second = head(one), head(other)
    if first == second or first in other.split() or second in one.split():
        return True
    if _is_human(one) and _is_human(other):
        return True
    return not _families(one).isdisjoint(_families(other))


def _is_human(noun: str) -> bool:
    return is_person(noun) or head(noun) in ("body", "figure", "mannequin")


def is_animal(noun: str) -> bool:
    """Whether a noun names an animal."""
    return any("animal" in family for family in _families(noun))


@lru_cache(maxsize=1 << 12)
def _families(noun: str) -> frozenset[frozenset[str]]:
    """The families of a noun."""
    word = head(noun)
    words = (word, word.removesuffix("s"), noun.replace(" ", "-"), noun.replace(" ", ""))
    return frozenset(family for family in _FAMILIES if not family.isdisjoint(words))
