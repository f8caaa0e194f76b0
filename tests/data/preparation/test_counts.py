"""Counts are compared with the published ones for the settings in use; missing splits count too."""

import pytest

from refcli.data.distinct import DistinctCounter
from refcli.data.preparation.counts import check_counts
from refcli.data.preparation.plan import plan_named
from refcli.data.preparation.run import Intake
from refcli.data.sources.flickr import FlickrSettings
from refcli.data.sources.referit import ReferitSettings
from refcli.data.spec import load_spec


def intake(images, refs, expressions):
    return Intake(refs, expressions, DistinctCounter(map(str, range(images))))


REFERIT = {"train": intake(8994, 44647, 54127), "val": intake(1000, 4866, 5842), "test": intake(9993, 49728, 60103)}
WHOLE_REFERIT = REFERIT | {"train": intake(8995, 44649, 54134), "test": intake(9994, 49730, 60105)}


def referit(**changes):
    return ReferitSettings(**{"drop_missing_images": True} | changes).model_dump(mode="json")


def test_a_missing_published_split_counts_zero():
    found = {split: REFERIT[split] for split in ("train", "test")}
    checks = check_counts(load_spec("referit"), found, settings=referit())
    assert len(checks) == 9
    assert [(check.split, check.what, check.expected, check.found) for check in checks if not check.agrees] == [
        ("val", "expressions", 5842, 0),
        ("val", "images", 1000, 0),
        ("val", "refs", 4866, 0),
    ]


def test_unwanted_splits_are_not_checked():
    checks = check_counts(load_spec("referit"), {"val": REFERIT["val"]}, settings=referit(), splits=["val"])
    assert [check.agrees for check in checks] == [True] * 3


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (referit(), REFERIT),
        (referit(inclusive_boxes=False), REFERIT),
        (referit(drop_missing_images=False), WHOLE_REFERIT),
    ],
)
def test_the_counts_of_referit_are_those_of_its_settings(settings, found):
    spec = load_spec("referit")
    assert all(check.agrees for check in check_counts(spec, found, settings=settings))
    other = WHOLE_REFERIT if found is REFERIT else REFERIT
    assert not all(check.agrees for check in check_counts(spec, other, settings=settings))


@pytest.mark.parametrize("changed", [{"scene_boxes": True}, {"unrelated_captions": "drop"}])
def test_unknown_counts_are_not_checked(changed):
    spec = load_spec("flickr30k")
    known, unknown = (FlickrSettings(**given).model_dump(mode="json") for given in ({}, changed))
    both = FlickrSettings(scene_boxes=True, unrelated_captions="drop").model_dump(mode="json")
    assert len(check_counts(spec, {}, settings=known)) == 3
    assert check_counts(spec, {}, settings=unknown) == []
    assert check_counts(spec, {}, settings=both) == []


def test_the_settings_of_a_plan_select_its_counts(tmp_path):
    for name in ("bbox", "query_train", "query_val", "query_test"):
        (tmp_path / f"referit_{name}.json").write_text("{}")
    plan = plan_named("referit", raw=tmp_path)
    assert all(
        check.agrees for check in check_counts(plan.spec, REFERIT, settings=plan.settings.model_dump(mode="json"))
    )


def test_values_are_counted_once_however_often_and_late_they_come_back():
    counter = DistinctCounter()
    for start in (0, 50_000, 0):
        counter.update(map(str, range(start, start + 100_000)))

    assert len(counter) == 150_000
    counter.update(["0", "another"])
    assert len(counter) == 150_001
