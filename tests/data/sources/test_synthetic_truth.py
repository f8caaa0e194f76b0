"""The targets of synthetic expressions, derived again by an independent reader of masks and attributes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refcli.data.language.dice import generator
from refcli.data.sources.synthetic import RenderedScene, SyntheticSettings, render_scene
from refcli.data.sources.synthetic.render import render

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "gray")
SHAPES = ("circle", "square", "triangle", "rectangle", "oval", "star", "heart", "diamond", "cross", "ring", "crescent")
ADJECTIVES = {
    **dict.fromkeys(("small", "little"), ("size_class", "small")),
    **dict.fromkeys(("big", "large"), ("size_class", "big")),
    **dict.fromkeys(("solid", "plain"), ("fill", "solid")),
    **dict.fromkeys(("dotted", "spotted", "dots"), ("fill", "dotted")),
    **dict.fromkeys(("striped", "stripes"), ("fill", "striped")),
    **dict.fromkeys(("outlined", "outline"), ("fill", "outlined")),
    **{
        word: ("colour", word)
        for word in [
            "red",
            "orange",
            "yellow",
            "green",
            "cyan",
            "blue",
            "purple",
            "pink",
            "brown",
            "black",
            "white",
            "gray",
        ]
    },
    "grey": ("colour", "gray"),
}
NOUNS = {
    word: ("shape", word)
    for word in [
        "circle",
        "square",
        "triangle",
        "rectangle",
        "oval",
        "star",
        "heart",
        "diamond",
        "cross",
        "ring",
        "crescent",
        "arrow",
    ]
} | {"moon": ("shape", "crescent"), "plus": ("shape", "cross")}
NOUNS |= {f"{noun}s": meaning for noun, meaning in NOUNS.items()} | {
    "crosses": ("shape", "cross"),
    "pluses": ("shape", "cross"),
}
ANYTHING = {"object", "objects", "thing", "things", "shape", "shapes", "one", "ones"}
FILLERS = {"the", "with", "an", "a", "that", "which", "is", "are", "all", "both", "every"}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
RANKS = {"first": 0, "second": 1, "third": 2, "fourth": 3}
EXTREMES = {
    r"leftmost (.*)|(.*) on (?:the )?(?:far )?left|(.*) furthest to (?:the )?left|left (.*)": "left",
    r"rightmost (.*)|(.*) on (?:the )?(?:far )?right|(.*) furthest to (?:the )?right|right (.*)": "right",
    r"topmost (.*)|highest (.*)|(.*) at (?:the )?top": "top",
    r"bottommost (.*)|lowest (.*)|(.*) at (?:the )?bottom": "bottom",
    r"biggest (.*)|largest (.*)": "big",
    r"smallest (.*)": "small",
}
RELATION = re.compile(
    r"^(.*?) (?:that is |which is )?(?:(?:to |on )?(?:the )?(left|right) of|(above|over|below|under|beneath)) (.*)$"
)


@dataclass(frozen=True)
class Seen:
    """One object as a reader of the image sees it."""

    shape: str
    colour: str
    fill: str
    size_class: str | None
    size: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def look(rendered: RenderedScene) -> list[Seen]:
    """Attributes from the scene; places from the layout's silhouettes."""
    return [
        Seen(
            item.shape,
            item.colour,
            item.fill,
            item.size_class,
            item.size,
            item.x - item.half_width,
            item.y - item.half_height,
            item.x + item.half_width,
            item.y + item.half_height,
        )
        for item in rendered.scene.objects
    ]


def fitting(phrase: str, seen: list[Seen]) -> set[int]:
    """The objects that fit a phrase of adjectives and a noun; an unknown word is an error."""
    words = [word for word in phrase.split() if word not in FILLERS and word not in ANYTHING and word not in COUNTS]
    wanted = [ADJECTIVES.get(word) or NOUNS[word] for word in words]
    return {n for n, item in enumerate(seen) if all(getattr(item, name) == value for name, value in wanted)}


def ordered(group: set[int], side: str, seen: list[Seen]) -> list[int]:
    """The group by distance from a side, or by size."""
    keys = {
        "left": lambda n: seen[n].middle[0],
        "right": lambda n: -seen[n].middle[0],
        "top": lambda n: seen[n].middle[1],
        "bottom": lambda n: -seen[n].middle[1],
        "big": lambda n: -seen[n].size,
        "small": lambda n: seen[n].size,
    }
    return sorted(group, key=keys[side])


def is_placed(one: Seen, direction: str, other: Seen) -> bool:
    """The dominant direction from `other` to `one`."""
    dx, dy = one.middle[0] - other.middle[0], one.middle[1] - other.middle[1]
    return {
        "left": dx < 0 and abs(dx) >= abs(dy),
        "right": dx > 0 and abs(dx) >= abs(dy),
        "above": dy < 0 and abs(dy) >= abs(dx),
        "below": dy > 0 and abs(dy) >= abs(dx),
    }[direction]


def read(text: str, seen: list[Seen]) -> set[int]:
    """The objects that an expression refers to."""
    text = text.removeprefix("the ")
    if " and " in text:
        return set.union(*(read(part, seen) for part in text.split(" and ")))
    if found := re.fullmatch(r"(first|second|third|fourth) (.*) from (?:the )?(left|right|top|bottom)", text):
        order = ordered(fitting(found[2], seen), found[3], seen)
        return set(order[RANKS[found[1]] : RANKS[found[1]] + 1])
    if found := RELATION.match(text):
        direction = found[2] or {"over": "above", "under": "below", "beneath": "below"}.get(found[3], found[3])
        anchors = read(found[4], seen)
        return {
            n for n in fitting(found[1], seen) for a in anchors if n != a and is_placed(seen[n], direction, seen[a])
        }
    if found := re.fullmatch(r"(.*) (?:that|which) (?:is|are) not (.*)|(.*) (without .*)", text):
        excluded = (found[2] or found[4]).removeprefix("without ")
        return fitting(found[1] or found[3], seen) - fitting(excluded, seen)
    if found := re.fullmatch(r"(.*) (?:except|but) (.*)", text):
        return fitting(found[1], seen) - fitting(found[2], seen)
    for pattern, side in EXTREMES.items():
        if found := re.fullmatch(pattern, text):
            return set(ordered(fitting(next(filter(None, found.groups())), seen), side, seen)[:1])
    return fitting(text, seen)


@pytest.fixture(scope="module")
def scenes() -> list[RenderedScene]:
    settings = SyntheticSettings(seed=5)
    return [render_scene(settings, "train", index) for index in range(250)]


def referents(example) -> set[int]:
    return {int(region.source_id) for region in example.regions}


KINDS = ["attribute", "superlative", "ordinal", "relation", "nested", "exclusion", "plural", "no_target"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_reader_finds_exactly_the_stored_referents(scenes: list[RenderedScene], kind: str) -> None:
    read_examples = 0
    for rendered in scenes:
        seen = look(rendered)
        for example in rendered.examples:
            if example.kind == kind:
                assert read(example.expression, seen) == referents(example), (example.id, example.expression)
                read_examples += 1
    assert read_examples >= 60


def test_singular_kinds_have_one_referent_and_plurals_several(scenes: list[RenderedScene]) -> None:
    for rendered in scenes:
        for example in rendered.examples:
            count = len(example.regions)
            fits = {"no_target": count == 0, "plural": count >= 2}.get(example.kind, count == 1)
            assert fits, (example.kind, example.expression, count)


def test_number_words_count_the_referents(scenes: list[RenderedScene]) -> None:
    counted = 0
    for rendered in scenes:
        for example in rendered.examples:
            numbers = [COUNTS[word] for word in example.expression.split() if word in COUNTS]
            numbers += [2] if "both" in example.expression.split() else []
            if numbers and example.kind == "plural":
                assert numbers == [len(example.regions)], example.expression
                counted += 1
    assert counted >= 20


def test_relations_and_superlatives_hold_in_the_visible_masks_by_a_margin(scenes: list[RenderedScene]) -> None:
    """Occlusion must not make "leftmost" wrong: the visible box's centre is still the leftmost of its group."""
    checked = 0
    for rendered in scenes:
        image = render(rendered.scene, generator(5, "train", 0, 0, "picture"))
        seen = look(rendered)
        for example, expression in zip(rendered.examples, rendered.expressions, strict=True):
            if example.kind == "superlative" and expression.term.axis in ("left", "right"):
                sign = 1 if expression.term.axis == "left" else -1
                group = fitting(" ".join(word for word in expression.term.description if word), seen)
                centre = {n: sign * np.nonzero(image.owner == n)[1].mean() for n in group}
                (winner,) = referents(example)
                assert min(centre, key=centre.get) == winner, example.expression
                checked += 1
    assert checked >= 30


def test_size_words_are_used_only_across_a_clear_gap(scenes: list[RenderedScene]) -> None:
    for rendered in scenes:
        sizes = {"small": [], "big": [], None: []}
        for item in rendered.scene.objects:
            sizes[item.size_class].append(item.size)
        if sizes["small"] and sizes["big"]:
            assert min(sizes["big"]) >= 1.4 * max(sizes["small"])
        words = {word for example in rendered.examples for word in example.expression.split()}
        if not (sizes["small"] and sizes["big"]):
            assert not words & {"small", "little", "big", "large"}


def test_masks_of_different_objects_never_overlap(scenes: list[RenderedScene]) -> None:
    for rendered in scenes[:60]:
        masks = {r.source_id: r.mask for example in rendered.examples for r in example.regions}
        bitmaps = [coco_mask.decode({"size": list(m.size), "counts": m.counts}) for m in masks.values()]
        if bitmaps:
            assert np.sum(bitmaps, axis=0).max() == 1
