"""Statistics of a split equal counts over its examples."""

import random
from collections import Counter

import numpy as np
import pytest

from refcli.contracts.example import Example, Region
from refcli.data.store.read import Store
from refcli.data.store.statistics import Distribution, distribution, split_statistics
from refcli.data.store.write import write_manifest, write_split
from refcli.geometry.masks import encode_mask

WIDTH, HEIGHT = 40, 20
MASK = encode_mask(np.ones((HEIGHT, WIDTH), dtype=bool))


def example(number, *regions, expression="the cup", image="a.png", kind=None, size=(WIDTH, HEIGHT), ignored=None):
    return Example(
        id=str(number),
        dataset="toy",
        split="all",
        image=image,
        image_id=image,
        width=size[0],
        height=size[1],
        expression=expression,
        regions=regions,
        kind=kind,
        ignored=ignored,
    )


def statistics_of(folder, *examples, **options):
    write_manifest(folder, [write_split(folder, "toy", "all", examples, **options)])
    return split_statistics(Store(folder).split("toy:all"))


def count_of(spread, start):
    """Values in the bin that begins at `start`."""
    return next(one.count for one in spread.bins if one.start == start)


def test_counts_are_those_of_the_examples(tmp_path):
    box = Region((0.0, 0.0, 4.0, 4.0))
    found = statistics_of(
        tmp_path,
        example(0, box, image="a.png", kind="colour"),
        example(1, box, Region(box.box_xyxy, MASK), image="a.png", kind="place"),
        example(2, image="b.png", kind="colour"),
        example(3, image="c.png", ignored=MASK),
    )

    assert found.name == "toy:all"
    assert (found.images, found.expressions, found.regions, found.masks, found.no_target) == (3, 4, 3, 1, 2)
    assert found.ignored == 1
    assert list(found.kinds.items()) == [("colour", 2), ("place", 1)]
    assert [count_of(found.regions_per_expression, number) for number in (0, 1, 2, 3)] == [2, 1, 1, 0]
    assert [count_of(found.expressions_per_image, number) for number in (1, 2, 3)] == [2, 1, 0]


@pytest.mark.parametrize(
    "expression",
    [
        "cup",
        "  the   cup\n",
        "a\tb\nc",
        "the\u00a0red\u3000cup",
        "猫",
        "l'été, à gauche",
        "one-word",
        "a b c d e f g h i j k l",
    ],
)
def test_words_are_separated_by_white_space(tmp_path, expression):
    spread = statistics_of(tmp_path, example(0, expression=expression)).expression_words

    assert spread.mean == len(expression.split())


def test_only_the_part_of_a_box_inside_its_image_counts(tmp_path):
    whole = Region((0.0, 0.0, 40.0, 20.0))
    quarter_outside = Region((30.0, 10.0, 50.0, 30.0))  # 10 x 10 of the 40 x 20 pixels are inside: an eighth
    beside = Region((-9.0, 0.0, -1.0, 5.0))
    found = statistics_of(tmp_path, example(0, whole), example(1, quarter_outside), example(2, beside))
    area, side = found.box_area_share, found.box_side_share

    assert (area.count, area.smallest, area.median, area.largest) == (3, 0.0, 0.125, 1.0)
    assert (side.smallest, side.median, side.largest) == (0.0, pytest.approx(0.125**0.5), 1.0)
    assert (count_of(area, 0.0), count_of(area, 0.1), count_of(area, 0.5)) == (1, 1, 1)
    assert (count_of(side, 0.0), count_of(side, 0.3), count_of(side, 0.9)) == (1, 1, 1)
    assert area.bins[-1].stop == side.bins[-1].stop == 1.0


def test_images_of_unknown_size_are_counted_but_their_boxes_are_not_measured(tmp_path):
    found = statistics_of(
        tmp_path,
        example(0, Region((0.0, 0.0, 400.0, 200.0)), size=(0, 0)),
        example(1, Region((0.0, 0.0, 20.0, 10.0))),
    )

    assert found.unknown_size == 1
    assert found.regions == 2
    assert (found.box_area_share.count, found.box_area_share.mean) == (1, 0.25)


def test_a_split_without_regions_has_no_box_figures(tmp_path):
    found = statistics_of(tmp_path, example(0), example(1))

    assert found.no_target == 2
    assert found.kinds == {}
    assert found.box_area_share.count == 0
    assert found.box_area_share.mean is found.box_area_share.largest is None
    assert sum(one.count for one in found.box_area_share.bins) == 0


def test_statistics_span_all_row_groups(tmp_path):
    dice = random.Random(4)
    examples = [
        example(
            number,
            *(
                Region((0.0, 0.0, dice.uniform(1, 40), 20.0), dice.choice([None, MASK]))
                for _ in range(dice.randrange(4))
            ),
            expression=" ".join(["word"] * dice.randint(1, 40)),
            image=f"{dice.randrange(9)}.png",
            kind=dice.choice(["a", "b", None]),
        )
        for number in range(50)
    ]
    found = statistics_of(tmp_path, *examples, rows_per_group=7)
    regions = [region for one in examples for region in one.regions]

    assert found.images == len({one.image for one in examples})
    assert (found.expressions, found.regions) == (50, len(regions))
    assert found.masks == sum(region.mask is not None for region in regions)
    assert found.no_target == sum(not one.regions for one in examples)
    assert found.kinds == {kind: n for kind, n in Counter(one.kind for one in examples).items() if kind}
    assert found.expression_words.mean == pytest.approx(np.mean([len(one.expression.split()) for one in examples]))
    assert found.box_area_share.mean == pytest.approx(np.mean([region.box_xyxy[2] / 40 for region in regions]))
    assert found.expressions_per_image.largest == max(Counter(one.image for one in examples).values())


def test_every_value_is_in_the_bin_that_contains_it():
    values = np.array([0, 1, 1, 5, 6, 10, 11, 900])
    spread = distribution(values, (0, 1, 2, 6, 11))

    assert [(one.start, one.stop) for one in spread.bins] == [(0, 1), (1, 2), (2, 6), (6, 11), (11, None)]
    for one in spread.bins:
        assert one.count == sum(one.start <= value and (one.stop is None or value < one.stop) for value in values)
    assert spread.count == len(values)
    assert (spread.smallest, spread.median, spread.mean, spread.largest) == (0, 5.5, values.mean(), 900)


def test_the_greatest_share_is_in_the_last_bin():
    assert [one.count for one in distribution(np.array([0.0, 0.5, 1.0]), (0.0, 0.5), top=1.0).bins] == [1, 2]


def test_an_empty_distribution_has_no_figures():
    spread = distribution(np.zeros(0), (0.0, 0.5), top=1.0)

    assert spread == Distribution(0, None, None, None, None, spread.bins)
    assert [one.count for one in spread.bins] == [0, 0]
