"""Every data set that is read by its name: a tiny release of it gives the examples worked out by hand."""

from __future__ import annotations

import pytest
from releases import COVERED_BY_CORPORA, RELEASES

from refcli.data.preparation.plan import origin_of, plan_named
from refcli.data.spec import list_specs, load_spec
from refcli.data.store.read import Store
from refcli.recipes.prepare_data import Preparation, prepare


def test_every_data_set_with_files_has_a_release():
    named = {name for name in list_specs() if origin_of(name) == "published"}

    assert named == set(RELEASES) | COVERED_BY_CORPORA


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_read_as_worked_out_by_hand(name, tmp_path):
    release = RELEASES[name]
    raw = tmp_path / "raw"
    raw.mkdir()
    release.write(raw)
    plan = plan_named(name, raw=raw)

    report = prepare(plan, Preparation(out=tmp_path / "store"))

    store = Store(tmp_path / "store")
    splits = {split: store.split(f"{name}:{split}") for split in release.sizes}
    assert {split: len(rows) for split, rows in splits.items()} == release.sizes
    assert store.names() == sorted(f"{name}:{split}" for split in release.sizes)
    assert dict(report.problems.counts) == dict(release.problems)
    examples = {
        (split, one.id): one for split, rows in splits.items() for one in map(rows.__getitem__, range(len(rows)))
    }
    for expected in release.expected:
        found = examples[expected.split, expected.id]
        assert found.expression == expected.expression
        sides = [side for region in found.regions for side in region.box_xyxy]
        assert sides == pytest.approx([side for box in expected.boxes_xyxy for side in box])
        assert found.kind == expected.kind
    assert bool(plan.notes) == (not load_spec(name).verified)
