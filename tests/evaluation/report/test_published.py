"""Published results name splits, metrics and conventions that exist, and appear for real data only."""

from __future__ import annotations

import pytest

from refcli.config.load import validate
from refcli.data.spec import list_specs, load_spec
from refcli.errors import ConfigError
from refcli.evaluation.report.published import PublishedResults, load_published, published_on, published_size

TABLE = {
    "metric": "acc50",
    "convention": "original",
    "training": "single",
    "source": "somewhere",
    "splits": ["a:b"],
    "systems": {"X": [50.0]},
}


def test_every_column_is_a_split_of_a_data_set_that_refcli_prepares():
    for table in load_published().tables:
        for split in table.splits:
            dataset, part = split.split(":")
            assert dataset in list_specs()
            assert part in load_spec(dataset).splits
            assert published_size(split) == load_spec(dataset).splits[part].expressions


def test_a_row_is_found_by_its_split_as_a_fraction():
    found = {(one.system, one.metric, one.training): one for one in published_on("refcoco_unc:testA")}
    assert found["OneRef-L", "acc50", "mixed"].value == pytest.approx(0.9543)
    assert found["OneRef-L", "acc50", "mixed"].convention == "oneref384"
    assert found["CGFormer", "mask_oiou", "single"].value == pytest.approx(0.7730)
    rela = {one.metric: one.value for one in published_on("grefcoco:val") if one.system == "ReLA"}
    assert rela == pytest.approx({"giou": 0.6360, "ciou": 0.6242, "n_acc": 0.5637, "t_acc": 0.9632})


def test_a_column_without_a_value_and_other_data_sets_have_no_row():
    assert "VG-LAW" in {one.system for one in published_on("referit:test")}
    assert "VG-LAW" not in {one.system for one in published_on("flickr30k:test")}
    assert published_on("synthetic:test") == published_on("mine:val") == []


def test_no_system_has_two_results_for_the_same_metric():
    for split in {split for table in load_published().tables for split in table.splits}:
        keys = [(one.system, one.metric, one.convention, one.training) for one in published_on(split)]
        assert len(set(keys)) == len(keys), split


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "accuracy"},
        {"convention": "mine"},
        {"systems": {"X": [50.0, 60.0]}},
        {"systems": {"X": [123.0]}},
        {"training": "zero-shot"},
    ],
)
def test_a_table_that_does_not_fit_is_refused(change):
    validate(PublishedResults, {"tables": [TABLE]}, where="here")
    with pytest.raises(ConfigError):
        validate(PublishedResults, {"tables": [TABLE | change]}, where="here")
