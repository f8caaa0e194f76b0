"""Class names become English nouns, and classes that may name the same object are related."""

import pytest

from refcli.data.templates.names import may_be_the_same, readable_noun


@pytest.mark.parametrize(
    ("class_name", "noun"),
    [
        ("cell_phone", "cell phone"),
        ("Car", "car"),
        ("the plate", "plate"),
        ("TrafficLight", "traffic light"),
        ("TV", "tv"),
        ("mouse_(computer_equipment)", "mouse"),
        ("T-shirt", "t-shirt"),
        (" sports  ball ", "sports ball"),
        ("person with helmet", "person with helmet"),
    ],
)
def test_a_class_name_becomes_a_lower_case_noun_phrase(class_name, noun):
    assert readable_noun(class_name) == noun


@pytest.mark.parametrize(
    "class_name",
    ["", "0", "class_3", "F16", "n02084071", "/m/01g317", "xqz", "b", "cup/mug", "cup, mug", "汽车", "no_helmet",
     "No-Helmet", "DontCare", "other", "Other Shoes", "background", "a very long class name", "<unk>"],
)  # fmt: skip
def test_a_name_that_is_no_noun_for_one_kind_of_thing_is_refused(class_name):
    assert readable_noun(class_name) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("car", "car"),
        ("car", "truck"),
        ("vehicle", "car"),
        ("cars", "vehicle"),
        ("vehicle", "bicycle"),
        ("man", "person"),
        ("pedestrian", "rider"),
        ("woman", "human body"),
        ("wine glass", "glass"),
        ("teddy bear", "bear"),
        ("hot dog", "dog"),
        ("animal", "zebra"),
        ("cup", "bowl"),
        ("potted plant", "vase"),
        ("dining table", "desk"),
        ("fire truck", "truck"),
        ("apple tree", "apple"),
        ("person with helmet", "person"),
    ],
)
def test_classes_that_may_name_the_same_object_are_related_in_both_directions(one, other):
    assert may_be_the_same(one, other)
    assert may_be_the_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("car", "person"), ("bicycle", "car"), ("zebra", "tree"), ("traffic light", "traffic sign"), ("dog", "pizza")],
)
def test_other_classes_are_not_related(one, other):
    assert not may_be_the_same(one, other)
