"""Words of direction in a mirror, and which expressions speak of position."""

import pytest

from refcli.text.phrases import mentions_position, swap_left_right


@pytest.mark.parametrize(
    ("expression", "mirrored"),
    [
        ("the leftmost cat", "the rightmost cat"),
        ("cat on the right", "cat on the left"),
        ("second from left", "second from right"),
        ("left", "right"),
        ("RIGHT cat", "LEFT cat"),
        ("Left cat, right dog", "Right cat, left dog"),
        ("left-hand side", "right-hand side"),
        ("lefthand glove", "righthand glove"),
        ("right-most", "left-most"),
        ("far left", "far right"),
        ("bottom-right corner", "bottom-left corner"),
        ("the guy to the right of the left bench", "the guy to the left of the right bench"),
        ("the one facing right", "the one facing left"),
        ("right in blue", "left in blue"),
        ("guy on the right in the middle row", "guy on the left in the middle row"),
        ("rt guy", "lft guy"),
        ("left's friend", "right's friend"),
    ],
)
def test_directions_are_mirrored(expression, mirrored):
    assert swap_left_right(expression) == mirrored


@pytest.mark.parametrize(("expression"), ["left", "rightmost dog", "the Left-hand cup right of it", "on the far RIGHT"])
def test_mirroring_twice_restores_the_expression(expression):
    assert swap_left_right(expression) != expression
    assert swap_left_right(swap_left_right(expression)) == expression


@pytest.mark.parametrize(
    "expression",
    [
        "alright",
        "the bright cup",
        "upright piano",
        "copyright sign",
        "cleft chin",
        "dog right behind the car",
        "the cup right next to her",
        "woman right in front of you",
        "standing right by the door",
        "the bag left behind",
        "the all right one",
        "",
        "red cup",
    ],
)
def test_other_words_stay(expression):
    assert swap_left_right(expression) == expression


@pytest.mark.parametrize(
    "expression",
    [
        "left cup",
        "RIGHT",
        "leftmost",
        "top bun",
        "bottom",
        "middle one",
        "center",
        "centre piece",
        "the first man",
        "third from the end",
        "3rd from left",
        "2nd",
        "the front-most car",
        "corner piece",
        "chair above the cat",
        "boat below",
        "the last cookie",
        "nearest person",
        "at 3 o'clock",
        "cup behind",
        "topmost",
    ],
)
def test_expressions_of_position_are_known(expression):
    assert mentions_position(expression)


@pytest.mark.parametrize(
    "expression",
    ["laptop", "a bright cup", "the woman in red", "striped cat", "two blue stars", "biggest pizza", "stopped bus", ""],
)
def test_other_expressions_do_not_mention_position(expression):
    assert not mentions_position(expression)
