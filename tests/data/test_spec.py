"""Specifications of data sets: each one is complete, its counts are consistent, and its files are found."""

import gzip
from pathlib import Path

import pytest

from refcli.config.load import validate
from refcli.config.schema import Settings
from refcli.data.sources.record import Source
from refcli.data.sources.table import GENERATORS, SOURCES
from refcli.data.spec import DatasetSpec, find_files, is_evaluation_split, is_train_like, list_specs, load_spec
from refcli.errors import ConfigError, DataError
from refcli.tables import lookup

PUBLISHED = [name for name in list_specs() if load_spec(name).source in SOURCES]
MIXTURES = [name for name in list_specs() if load_spec(name).mixture]


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_every_published_data_set_has_a_specification():
    assert set(list_specs()) >= {
        "refcoco_unc",
        "refcoco_google",
        "refcoco_plus_unc",
        "refcocog_umd",
        "refcocog_google",
        "grefcoco",
        "referit",
        "flickr30k",
        "mixup_refc",
        "mixup_refc_referit",
        "synthetic",
    }


@pytest.mark.parametrize("name", list_specs())
def test_every_specification_names_its_content_authors_and_licence(name):
    spec = load_spec(name)
    assert "\n" not in spec.description.strip()
    assert spec.licence
    assert spec.origin
    assert spec.source is None or spec.source in {**SOURCES, **GENERATORS}
    if name not in GENERATORS:
        assert spec.citation
        assert spec.homepage
        assert spec.images


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_and_settings_of_a_published_data_set_are_those_of_its_source(name):
    spec = load_spec(name)
    source: Source = lookup(SOURCES, spec.source, what="source")
    assert isinstance(validate(source.settings, spec.settings, where=name), Settings)
    splits = set(spec.splits) if source.has_file_per_split else set()
    roles = set(source.files) - {"*"} | splits
    if set(spec.files) <= set(spec.splits):  # one file per split, even where the source also reads all from one folder
        roles = set(spec.splits)
    assert roles - source.optional <= set(spec.files) <= roles
    assert spec.obtain
    assert spec.splits


@pytest.mark.parametrize("name", PUBLISHED)
def test_expressions_are_no_fewer_than_refs_and_refs_no_fewer_than_images(name):
    for split, counts in load_spec(name).splits.items():
        known = [count for count in (counts.images, counts.refs, counts.expressions) if count]
        assert known == sorted(known), split


@pytest.mark.parametrize(
    ("name", "images", "refs"),
    [("refcoco_unc", 19_994, 50_000), ("refcoco_plus_unc", 19_992, 49_856), ("refcocog_umd", 25_799, 49_822)],
)
def test_splits_by_image_add_up_to_the_total(name, images, refs):
    splits = load_spec(name).splits.values()
    assert sum(split.images for split in splits) == images
    assert sum(split.refs for split in splits) == refs


@pytest.mark.parametrize(
    ("name", "images", "refs"), [("refcoco_google", 19_994, 50_000), ("refcocog_google", 25_799, 49_822)]
)
def test_splits_by_object_share_images_but_no_objects(name, images, refs):
    spec = load_spec(name)
    assert sum(split.images for split in spec.splits.values()) > images
    assert sum(split.refs for split in spec.splits.values()) == refs


def test_both_divisions_of_refcocog_hold_the_same_expressions():
    totals = [
        sum(split.expressions for split in load_spec(name).splits.values())
        for name in ("refcocog_umd", "refcocog_google")
    ]
    assert totals == [95_010, 95_010]


@pytest.mark.parametrize(("name", "paper"), [("mixup_refc", 321_327), ("mixup_refc_referit", 375_454)])
def test_the_papers_mixtures_are_the_plain_sums_of_their_members(name, paper):
    spec = load_spec(name)
    assert spec.splits["train"].expressions == paper
    for split, members in spec.mixture.items():
        parts = [member.split(":") for member in members]
        counts = [load_spec(dataset).splits[part].expressions for dataset, part in parts]
        assert sum(counts) == spec.splits[split].expressions


@pytest.mark.parametrize("name", MIXTURES)
def test_members_and_family_of_a_mixture_are_data_sets_with_evaluation_splits(name):
    spec = load_spec(name)
    trained_on = {member.split(":")[0] for member in spec.mixture["train"]}
    assert trained_on <= set(spec.family)
    for dataset in spec.family:
        assert any(is_evaluation_split(split) for split in load_spec(dataset).splits)


@pytest.mark.parametrize("name", ["train", "train2014", "trainval", "train_pseudo", "Train", "focus", "Focus_2"])
def test_training_splits_are_recognised_by_their_names(name):
    assert is_train_like(name)
    assert not is_evaluation_split(name)


@pytest.mark.parametrize("name", ["val", "test", "testA", "testAB", "minival", "untrained", "restval"])
def test_all_other_splits_are_for_evaluation(name):
    assert is_evaluation_split(name)
    assert not is_train_like(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_change_counts_are_settings_of_the_source(name):
    spec = load_spec(name)
    source: Source = lookup(SOURCES, spec.source, what="source")
    for entry in spec.counts_if:
        changed = validate(source.settings, spec.settings | entry.settings, where=name)
        assert changed != validate(source.settings, spec.settings, where=name)
        assert not entry.splits or entry.splits.keys() == spec.splits.keys()


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        load_spec("refcoco_ucn")
    assert "did you mean 'refcoco_unc'" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either a source or a mixture"),
        ({"source": "refer", "mixture": {"train": ["a:train"]}}, "either a source or a mixture"),
        ({"mixture": {"train": ["refcoco_unc"]}}, "is not dataset:split"),
        ({"mixture": {"val": ["a:val"]}, "family": ["b"]}, "not in the family"),
        ({"source": "refer", "files": {"refs": ["../refs.p"]}}, "not a path inside"),
        ({"source": "refer", "folders": ["/data"]}, "not a path inside"),
        ({"source": "refer", "splits": {"val": {"images": 3}}}, "basis"),
        ({"source": "refer", "licnce": "MIT"}, "licnce"),
        ({"source": "refer", "counts_if": [{"settings": {}}]}, "counts_if"),
        ({"mixture": {"train": ["a:train"]}, "counts_if": [{"settings": {"text": "raw"}}]}, "a mixture has none"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(changes, message):
    values = {"description": "a", "licence": "b", "origin": "c"} | changes
    with pytest.raises(ConfigError) as caught:
        validate(DatasetSpec, values, where="my.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("refs", ["refs(unc).p", "refs(unc).json", "refs_unc.p", "refs_unc.json", "refs(unc).p.gz"])
@pytest.mark.parametrize("folder", ["refcoco/", ""])
def test_refs_are_found_under_all_their_names_with_or_without_the_folder(tmp_path, folder, refs):
    touch(tmp_path, f"{folder}{refs}", f"{folder}instances.json.gz")
    assert find_files(load_spec("refcoco_unc"), tmp_path) == {
        "refs": tmp_path / folder / refs,
        "instances": tmp_path / folder / "instances.json.gz",
    }


def test_the_data_sets_own_folder_comes_before_the_raw_folder_and_plain_before_gz(tmp_path):
    touch(tmp_path, "refs(unc).p", "refcoco/refs_unc.json.gz", "refcoco/instances.json", "refcoco/instances.json.gz")
    found = find_files(load_spec("refcoco_unc"), tmp_path)
    assert found["refs"] == tmp_path / "refcoco/refs_unc.json.gz"
    assert found["instances"] == tmp_path / "refcoco/instances.json"


def test_the_instances_of_all_of_coco_are_accepted(tmp_path):
    touch(tmp_path, "refcoco+/refs(unc).p", "annotations/instances_train2014.json")
    found = find_files(load_spec("refcoco_plus_unc"), tmp_path)
    assert found["instances"] == tmp_path / "annotations/instances_train2014.json"


def test_the_folder_of_another_data_set_is_not_used(tmp_path):
    raw = tmp_path / "refcoco+"
    touch(raw, "refs(unc).p", "instances.json")
    assert find_files(load_spec("refcoco_plus_unc"), raw)["refs"] == raw / "refs(unc).p"
    with pytest.raises(DataError) as caught:
        find_files(load_spec("refcoco_unc"), raw)
    assert "has the name of another data set" in caught.value.hint


def test_missing_files_are_reported_with_every_place_tried_and_where_to_get_them(tmp_path):
    touch(tmp_path, "refcocog/instances.json")
    with pytest.raises(DataError) as caught:
        find_files(load_spec("refcocog_umd"), tmp_path)
    assert "1 of 2 files are missing: refs" in caught.value.message
    assert caught.value.where == str(tmp_path)
    for name in ("refs(umd).p", "refs(umd).json", "refs_umd.p", "refs_umd.json"):
        assert f" {name}" in caught.value.hint
        assert f"refcocog/{name}" in caught.value.hint
    assert "instances" not in caught.value.hint.split("obtain")[0]
    for one in load_spec("refcocog_umd").obtain:
        assert f"obtain {one.what}: {one.url}" in caught.value.hint


def test_a_raw_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        find_files(load_spec("flickr30k"), tmp_path / "nowhere")
    assert caught.value.where == str(tmp_path / "nowhere")
    assert "obtain" in caught.value.hint


def test_captions_of_flickr_that_were_unpacked_below_annotations_are_found(tmp_path):
    touch(tmp_path, *(f"{split}.txt" for split in ("train", "val", "test")))
    touch(tmp_path, "annotations/Annotations/1.xml", "annotations/Sentences/1.txt")
    found = find_files(load_spec("flickr30k"), tmp_path)
    assert found["annotations"] == tmp_path / "annotations/Annotations"
    assert found["sentences"] == tmp_path / "annotations/Sentences"


def test_optional_files_may_be_absent_but_those_of_published_splits_may_not(tmp_path):
    names = {"boxes": "bbox.json", "train": "query_train.json", "val": "query_val.json", "test": "query_test.json"}
    for name in names.values():
        path = tmp_path / "referit" / f"referit_{name}.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"{}"))
    assert set(find_files(load_spec("referit"), tmp_path)) == set(names)
    Path(tmp_path / "referit" / "referit_query_val.json.gz").unlink()
    assert set(find_files(load_spec("referit"), tmp_path, splits=["train", "test"])) == set(names) - {"val"}
    with pytest.raises(DataError, match="files are missing: val"):
        find_files(load_spec("referit"), tmp_path)
