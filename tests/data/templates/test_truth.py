"""The targets of written expressions, derived again from the boxes by a reader who knows only the words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from refcli.data.sources.labels import LabelSettings
from refcli.data.templates.graph import LabelledObject
from refcli.data.templates.write import DescribedImage, WrittenExpression, write_expressions
from refcli.geometry.boxes import box_area

WIDTH, HEIGHT = 400, 300
PLURALS = {"car": "cars", "truck": "trucks", "person": "people", "woman": "women", "traffic light": "traffic lights"}
PLURALS |= {"kite": "kites", "knife": "knives", "skis": "-", "broccoli": "-", "clock": "clocks", "tree": "trees"}
CLASSES = frozenset(PLURALS)
ALSO = {"car": {"car", "truck"}, "truck": {"car", "truck"}, "person": {"person", "woman"}, "woman": {"person", "woman"}}
"""Class -> the classes that a generous reader accepts for its noun."""
COLOURS = ("red", "green", "white")
RANKS = {"first": 0, "second": 1, "third": 2, "fourth": 3}
NUMBERS = {"both": 2, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
EXTREMES = {
    r"leftmost (.*)|(.*) furthest to (?:the )?left|(.*) on (?:the )?left|left (.*)": "left",
    r"rightmost (.*)|(.*) furthest to (?:the )?right|(.*) on (?:the )?right|right (.*)": "right",
    r"topmost (.*)|(.*) closest to (?:the )?top": "top",
    r"bottommost (.*)|(.*) closest to (?:the )?bottom": "bottom",
    r"(?:biggest|largest) (.*)": "big",
}
RELATION = re.compile(
    r"^(.*?) (?:(?:that|which|who) (?:is|are) )?(?:(?:to |on )?(?:the )?(left|right) of|(above|below)) (.*)$"
)
Seen = dict[int, LabelledObject]


def drawn_image(rng: np.random.Generator, number: int, noun_of: Callable[[str], str | None] = str) -> DescribedImage:
    """Boxes at random places, in half of the images beside each other; a few are tiny, crowds or of unknown colour."""
    classes = rng.choice(sorted(CLASSES), size=rng.integers(1, 4), replace=False)
    is_row = rng.random() < 0.5
    count = int(rng.integers(0, 7))
    objects = []
    for place in range(count):
        width, height = rng.uniform(20, 90, 2) * (1.5 if rng.random() < 0.2 else 1)
        if rng.random() < 0.1:
            width, height = 8, 8
        left = place * WIDTH / count if is_row else rng.uniform(0, WIDTH - width)
        top = 100 + rng.uniform(-30, 30) if is_row else rng.uniform(0, HEIGHT - height)
        box = (float(left), float(top), float(min(left + width, WIDTH)), float(min(top + height, HEIGHT)))
        colour = str(rng.choice(COLOURS)) if rng.random() < 0.7 else None
        others = {str(rng.choice(COLOURS))} if rng.random() < 0.3 else set()
        possible = None if colour is None and rng.random() < 0.5 else frozenset({colour, *others} - {None})
        noun = noun_of(str(rng.choice(classes)))
        objects.append(LabelledObject(noun, box, box_area(box), rng.random() < 0.1, colour, possible))
    return DescribedImage(f"coco:{number}", WIDTH, HEIGHT, tuple(objects))


def middle(item: LabelledObject) -> tuple[float, float]:
    left, top, right, bottom = item.box_xyxy
    return (left + right) / 2, (top + bottom) / 2


class Reader:
    """One way to read: generous or exact about classes and colours, and which point of a box is its place."""

    def __init__(self, seen: Seen, *, is_generous: bool, point: str) -> None:
        self.seen, self.is_generous, self.point = seen, is_generous, point

    def noun(self, word: str) -> set[int]:
        singular = {plural: noun for noun, plural in PLURALS.items()}.get(word, word)
        assert singular in CLASSES, word
        accepted = ALSO.get(singular, {singular}) if self.is_generous else {singular}
        return {number for number, item in self.seen.items() if item.noun in accepted}

    def coloured(self, colour: str, group: set[int]) -> set[int]:
        assert colour in COLOURS or colour in ("blue", "yellow", "black")
        if self.is_generous:
            return {number for number in group if self.seen[number].may_be(colour)}
        return {number for number in group if self.seen[number].colour == colour}

    def group(self, phrase: str) -> set[int]:
        phrase = re.sub(r"^(all|both|every|the)\s+(the\s+)?|^(two|three|four|five|six) ", "", phrase)
        phrase = re.sub(r"^(the )?(two|three|four|five|six) ", "", phrase)
        if found := re.fullmatch(r"(.*) (?:that|which) (?:is|are) (\w+)", phrase):
            return self.coloured(found[2], self.noun(found[1]))
        first, _, rest = phrase.partition(" ")
        if first in (*COLOURS, "blue", "yellow", "black"):
            return self.coloured(first, self.noun(rest))
        return self.noun(phrase)

    def ordered(self, group: set[int], side: str) -> list[int]:
        def place(number: int) -> float:
            left, top, right, bottom = self.seen[number].box_xyxy
            low, high = (left, right) if side in ("left", "right") else (top, bottom)
            at = {"middle": (low + high) / 2, "near": low, "far": high}[self.point]
            return at if side in ("left", "top") else -at

        if side == "big":
            return sorted(group, key=lambda number: -box_area(self.seen[number].box_xyxy))
        return sorted(group, key=place)

    def is_beside(self, number: int, direction: str, anchor: int) -> bool:
        (x, y), (anchor_x, anchor_y) = middle(self.seen[number]), middle(self.seen[anchor])
        along = {"left": anchor_x - x, "right": x - anchor_x, "above": anchor_y - y, "below": y - anchor_y}[direction]
        across = abs(y - anchor_y) if direction in ("left", "right") else abs(x - anchor_x)
        return along > 0 and (self.is_generous or along >= across)

    def read(self, text: str) -> set[int]:
        text = text.removeprefix("the ")
        if " and " in text:
            return set.union(*(self.read(part) for part in text.split(" and ")))
        if found := re.fullmatch(r"(first|second|third|fourth) (.*) from (?:the )?(left|right|top|bottom)", text):
            order = self.ordered(self.group(found[2]), found[3])
            return set(order[RANKS[found[1]] : RANKS[found[1]] + 1])
        if found := RELATION.match(text):
            anchors, direction = self.read(found[4]), found[2] or found[3]
            return {n for n in self.group(found[1]) for a in anchors if n != a and self.is_beside(n, direction, a)}
        if found := re.fullmatch(r"(.*) (?:that|which) (?:is|are) not (\w+)", text):
            group = self.group(found[1])
            return group - self.coloured(found[2], group)
        for pattern, side in EXTREMES.items():
            if found := re.fullmatch(pattern, text):
                return set(self.ordered(self.group(next(filter(None, found.groups()))), side)[:1])
        return self.group(text)


def readers(image: DescribedImage) -> list[Reader]:
    """All ways to read: with the objects that are easily overlooked and without them."""
    everything = dict(enumerate(image.objects))
    clear = {n: item for n, item in everything.items() if not item.is_crowd}
    clear = {n: item for n, item in clear.items() if min(np.subtract(item.box_xyxy[2:], item.box_xyxy[:2])) > 9}
    return [
        Reader(seen, is_generous=is_generous, point=point)
        for seen, is_generous, point in product((everything, clear), (False, True), ("middle", "near", "far"))
    ]


@pytest.fixture(scope="module")
def written() -> list[tuple[DescribedImage, tuple[WrittenExpression, ...]]]:
    rng = np.random.default_rng(3)
    settings = LabelSettings(expressions="template", seed=1, expressions_per_image=12)
    images = [drawn_image(rng, number) for number in range(400)]
    return [(image, write_expressions(image, CLASSES, settings)) for image in images]


def test_every_way_to_read_an_expression_finds_exactly_its_targets(written):
    counts = Counter()
    for image, expressions in written:
        ways = readers(image)
        for text, kind, targets, _ in expressions:
            assert all(way.read(text) == set(targets) for way in ways), (image, text, targets)
            counts[kind] += 1
    assert counts.keys() == {
        "attribute", "superlative", "ordinal", "relation", "nested", "exclusion", "plural", "no_target"
    }  # fmt: skip
    assert min(counts.values()) >= 20


def test_numbers_count_the_targets_and_no_target_is_overlooked_easily(written):
    counted = 0
    for image, expressions in written:
        for text, kind, targets, _ in expressions:
            numbers = [NUMBERS[word] for word in text.split() if word in NUMBERS]
            if numbers and kind == "plural":
                assert numbers == [len(targets)], text
                counted += 1
            for item in (image.objects[target] for target in targets):
                assert not item.is_crowd
                assert box_area(item.box_xyxy) > 64
            fits = {"no_target": len(targets) == 0, "plural": len(targets) > 1}.get(kind, len(targets) == 1)
            assert fits, (text, targets)
    assert counted >= 20


def test_mass_nouns_and_plural_nouns_are_never_counted_and_people_never_coloured(written):
    texts = [text for _, expressions in written for text, *_ in expressions]
    assert any("skis" in text for text in texts)
    assert any("broccoli" in text for text in texts)
    for text in texts:
        assert not re.search(r"(all|both|every|two|three|first|second) (the )?(\w+ )?(skis|broccoli)", text), text
        assert not re.search(r"(red|green|white) (person|people|woman|women)", text), text
        assert not re.search(r"skis (that|which) is|person (that|which)", text), text


def test_a_class_without_a_noun_may_be_anything_so_nothing_beside_it_is_certain():
    thing = LabelledObject(None, (200.0, 100.0, 260.0, 180.0), 4800.0)
    dog = LabelledObject("dog", (20.0, 100.0, 90.0, 180.0), 5600.0)
    settings = LabelSettings(expressions="template")
    alone = write_expressions(DescribedImage("a", WIDTH, HEIGHT, (dog,)), {"dog"}, settings)
    assert [one.text.removeprefix("the ") for one in alone if one.kind != "no_target"] == ["dog"]
    assert write_expressions(DescribedImage("a", WIDTH, HEIGHT, (dog, thing)), {"dog", "cat"}, settings) == ()


def test_if_objects_may_be_unlabelled_a_target_fits_its_expression_whatever_else_is_there():
    """Expressions about a random half of the objects stay true of their targets among all objects."""
    rng = np.random.default_rng(4)
    settings = LabelSettings(expressions="template", exhaustive=False, expressions_per_image=12)
    counts = Counter()
    for number in range(300):
        image = drawn_image(rng, number)
        labelled = [n for n in range(len(image.objects)) if rng.random() < 0.5]
        half = DescribedImage(image.key, WIDTH, HEIGHT, tuple(image.objects[n] for n in labelled))
        everything = Reader(dict(enumerate(image.objects)), is_generous=True, point="middle")
        for text, kind, targets, _ in write_expressions(half, CLASSES, settings):
            assert {labelled[target] for target in targets} <= everything.read(text), text
            assert targets
            assert not re.search(r"\b(all|both|every|two|three|four|first|second|.*most|.*est|to (the )?top)\b", text)
            counts[kind] += 1
    assert counts.keys() == {"attribute", "relation", "exclusion", "plural"}


def test_the_expressions_depend_on_the_seed_and_the_image_and_on_nothing_else():
    image = drawn_image(np.random.default_rng(8), 1)
    assert len(image.objects) > 2
    settings = LabelSettings(expressions="template")
    first = write_expressions(image, CLASSES, settings)
    assert write_expressions(image, frozenset(sorted(CLASSES, reverse=True)), settings) == first
    assert write_expressions(image, CLASSES, LabelSettings(expressions="template", seed=1)) != first
