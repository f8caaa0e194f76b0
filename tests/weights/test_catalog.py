"""The catalogue lists every published file, and states only verified values."""

from __future__ import annotations

from statistics import mean

import pytest
from pydantic import ValidationError

from refcli.config.load import read_yaml
from refcli.config.presets import data_specs_root
from refcli.data.spec import list_specs, load_spec
from refcli.errors import ExitCode, UsageError
from refcli.weights.catalog import Catalog, CatalogEntry
from refcli.weights.official.conversions.table import CONVERSIONS

SETS = ("unc", "unc+", "gref_umd", "referit", "flickr")
README = {
    *(f"mrefm_pretrain_patch16_384/{task}_mrefm_pretrain_{size}_patch16_384.pth"
      for task in ("rec", "res") for size in ("base", "large")),
    "rec_single_dataset_finetuning_base.zip",
    *(f"rec_single_dataset_finetuning_large_{name}.pth" for name in SETS),
    "rec_mixup_grounding_pretraining_base.zip",
    *(f"rec_mixup_grounding_pretraining_large_{name}.pth" for name in ("unc+g", "referit", "flickr")),
    "rec_mixup_grounding_ultimate_performance_base_in_the_survey.zip",
    "res_single_dataset_finetuning_base.zip",
    *(f"res_single_dataset_finetuning_large_{name}.pth" for name in SETS[:3]),
    "res_mixup_grounding_pretraining_base.zip",
    "res_mixup_grounding_pretraining_large_unc_+_g.pth",
    "beit3_checkpoints/beit3.spm",
    "beit3_checkpoints/beit3_base_indomain_patch16_224.pth",
    "beit3_checkpoints/beit3_large_indomain_patch16_224.pth",
    "beit3_checkpoints/vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth",
}  # fmt: skip
"""Every file that the README of linhuixiao/OneRef links on the hub."""
NUM_ONEREF_MODELS = 29
"""As that README counts them; several are in one zip."""


@pytest.fixture(scope="module")
def catalog():
    return Catalog.load()


def test_every_published_file_is_listed_and_nothing_else(catalog):
    assert {entry.file for entry in catalog.weights} - {None} == README


def test_each_of_the_twenty_nine_models_of_the_readme_has_a_name(catalog):
    models = [entry for entry in catalog.weights if entry.kind == "oneref"]

    assert len(models) == NUM_ONEREF_MODELS
    assert len({(entry.file, entry.member) for entry in models}) == NUM_ONEREF_MODELS


def test_unverified_values_are_null(catalog):
    published = [entry for entry in catalog.weights if entry.file is not None]

    assert {(entry.revision, entry.sha256, entry.num_bytes) for entry in published} == {(None, None, None)}
    assert all(entry.stated_size for entry in published)


def test_only_zips_have_members(catalog):
    for entry in catalog.weights:
        assert (entry.member is not None) == (entry.file is not None and entry.file.endswith(".zip")), entry.name


def test_every_kind_can_be_converted(catalog):
    assert {entry.kind for entry in catalog.weights} - {"builtin", "tokenizer"} <= CONVERSIONS.keys()


def test_data_sets_and_splits_are_those_of_prepare_data(catalog):
    for entry in catalog.weights:
        assert set(entry.trained_on) <= {*list_specs()}, entry.name
        for sets in entry.scores.values():
            for name, scores in sets.items():
                assert scores.keys() <= load_spec(name).splits.keys(), (entry.name, name)


def test_the_visual_tokenizer_is_credited_to_its_authors(catalog):
    origin = catalog.origin(catalog.find("vqkd"))

    assert "BEiT v2" in origin.citation
    assert origin.homepage.endswith("/beit2")


def test_training_starts_from_weights_of_the_same_size(catalog):
    for entry in catalog.weights:
        if entry.starts_from is not None:
            assert catalog.find(entry.starts_from).tower == entry.tower, entry.name


def mean_of_eight(catalog: Catalog, names: tuple[str, ...], table: str) -> float:
    """The mean over RefCOCO val/testA/testB, RefCOCO+ val/testA/testB and RefCOCOg val/test."""
    sets = [scores for name in names for scores in catalog.find(name).scores[table].values()]
    values = [value for scores in sets for value in scores.values()]
    assert len(values) == 8
    return round(mean(values), 2)


@pytest.mark.parametrize(
    ("size", "task", "table", "single", "mixed"),
    [
        ("base", "rec", ("table_1", "table_2"), 84.17, 88.14),
        ("large", "rec", ("table_1", "table_2"), 89.72, 89.82),
        ("base", "res", ("table_3", "table_3"), 72.86, 76.23),
        ("large", "res", ("table_3", "table_3"), 76.43, 78.25),
        ("base", "res", ("table_4", "table_4"), 72.84, 76.36),
        ("large", "res", ("table_4", "table_4"), 77.04, 78.20),
    ],
)
def test_the_scores_have_the_means_computed_from_the_papers_tables(catalog, size, task, table, single, mixed):
    names = tuple(f"oneref-{size}-{task}-{name}" for name in ("refcoco", "refcoco-plus", "refcocog"))

    assert mean_of_eight(catalog, names, table[0]) == single
    assert mean_of_eight(catalog, (f"oneref-{size}-{task}-mixed",), table[1]) == mixed


def test_a_misspelt_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="oneref-base-rec-refcco") as unknown:
        Catalog.load().find("oneref-base-rec-refcco")

    assert unknown.value.exit_code == ExitCode.USAGE
    assert unknown.value.hint.startswith("did you mean 'oneref-base-rec-refcoco'?")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "abc"}, "not 64 hex digits"),
        ({"revision": "G" * 40}, "not 40 hex digits"),
        ({"file": None}, "have a file"),
        ({"licence_of_mine": "no"}, "Extra inputs"),
    ],
)
def test_an_invalid_entry_is_refused(catalog, change, complaint):
    values = catalog.find("vqkd").model_dump() | change

    with pytest.raises(ValidationError, match=complaint):
        CatalogEntry.model_validate(values)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("name", "builtin", "given twice"),
        ("origin", "unknown", "no origin 'unknown'"),
        ("origin", "refcli", "has no repository"),
        ("starts_from", "nothing", "which is not listed"),
        ("scores", {"table_9": {}}, "no table 'table_9'"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused(key, value, complaint):
    values = read_yaml(data_specs_root() / "weights.yaml")
    values["weights"][-1][key] = value

    with pytest.raises(ValidationError, match=complaint):
        Catalog.model_validate(values)
