"""English nouns: the plural of a phrase is that of its head, and some nouns are not counted."""

import pytest

from refcli.data.language.english import is_countable, is_person, is_plural_noun, plural
from refcli.data.sources.synthetic.shapes import SHAPES


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("person", "people"),
        ("traffic light", "traffic lights"),
        ("bottle of water", "bottles of water"),
        ("fireman", "firemen"),
        ("caiman", "caimans"),
        ("knife", "knives"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("box", "boxes"),
        ("teddy bear", "teddy bears"),
        ("cherry", "cherries"),
        ("toy", "toys"),
        ("mouse", "mice"),
        ("sheep", "sheep"),
        ("potato", "potatoes"),
        ("cross", "crosses"),
        ("plus", "pluses"),
        ("jellyfish", "jellyfish"),
    ],
)
def test_the_plural_of_a_phrase_is_that_of_its_head(singular, expected):
    assert plural(singular) == expected


def test_shapes_have_regular_plurals_and_are_counted():
    assert all(plural(shape) == ("crosses" if shape == "cross" else f"{shape}s") for shape in SHAPES)
    assert all(map(is_countable, SHAPES))


@pytest.mark.parametrize(
    "noun", ["scissors", "skis", "people", "street lights", "sunglasses", "broccoli", "toilet paper"]
)
def test_plural_and_mass_nouns_are_not_counted(noun):
    assert not is_countable(noun)


@pytest.mark.parametrize("noun", ["bus", "wine glass", "dress", "cactus", "lens", "tennis racket", "sheep", "iris"])
def test_singular_nouns_that_end_with_s_are_counted(noun):
    assert is_countable(noun)
    assert not is_plural_noun(noun)


def test_people_are_recognised_by_the_head_of_the_phrase():
    people = ("person", "woman", "police officer", "person with helmet", "baseball player", "people")
    assert all(map(is_person, people))
    assert not any(map(is_person, ("dog", "personal computer", "talisman", "manhole cover", "player piano")))
