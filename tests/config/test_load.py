"""Settings: presets, overrides, and errors that name the place and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from refcli.config import presets
from refcli.config.explain import explain
from refcli.config.load import apply_overrides, load_finetune, merge, read_yaml, validate
from refcli.config.presets import find_preset, headline, list_presets, preset_path
from refcli.config.schema import FinetuneSettings, OptimSettings
from refcli.errors import ConfigError, ExitCode


@pytest.fixture
def specs(tmp_path, monkeypatch) -> Path:
    """An empty folder of finetune presets in place of the real one."""
    folder = tmp_path / "specs" / "presets" / "finetune"
    folder.mkdir(parents=True)
    monkeypatch.setattr(presets, "data_specs_root", lambda: tmp_path / "specs")
    return folder


def test_a_preset_lies_over_the_defaults_of_the_schema(specs):
    (specs / "small.yaml").write_text("model: {tower: {dim: 48, heads: 4}}\n")

    settings = load_finetune("small")

    assert settings.model.tower.dim == 48
    assert settings.model.tower.layers == FinetuneSettings().model.tower.layers


def test_extends_merges_deeply_and_the_extending_file_wins(specs):
    (specs / "base.yaml").write_text("optim: {lr: 0.5, warmup_steps: 7}\ndata: {train: [a:train, b:train]}\n")
    (specs / "child.yaml").write_text("extends: base\noptim: {lr: 0.25}\ndata: {train: [c:train]}\n")

    settings = load_finetune("child")

    assert (settings.optim.lr, settings.optim.warmup_steps) == (0.25, 7)
    assert settings.data.train == ("c:train",)


def test_extends_goes_one_level_deep_only(specs):
    (specs / "a.yaml").write_text("train: {steps: 1}\n")
    (specs / "b.yaml").write_text("extends: a\n")
    (specs / "c.yaml").write_text("extends: b\n")

    with pytest.raises(ConfigError, match="one level deep"):
        load_finetune("c")


def test_overrides_are_yaml_and_win_over_the_file(specs):
    (specs / "p.yaml").write_text("optim: {lr: 0.5}\n")

    settings = load_finetune(
        "p", ["optim.lr=1e-4", "optim.betas=[0.8, 0.9]", "train.ema_decay=null", "optim.options={eps: 1e-6}"]
    )

    assert settings.optim.lr == 1e-4
    assert settings.optim.betas == (0.8, 0.9)
    assert settings.train.ema_decay is None
    assert settings.optim.options == {"eps": 1e-6}, "1e-6 is a number although YAML 1.1 wants 1.0e-6"


def test_an_unknown_key_in_a_file_is_reported_with_the_file_the_key_and_the_nearest_one(specs):
    (specs / "p.yaml").write_text("optim: {warmup_step: 7}\n")

    with pytest.raises(ConfigError) as caught:
        load_finetune("p")

    assert caught.value.exit_code == ExitCode.USAGE == 2
    assert caught.value.where == f"{specs / 'p.yaml'}: optim.warmup_step"
    assert "did you mean 'warmup_steps'?" in caught.value.hint
    assert "batch_size" not in caught.value.hint, "only keys of that level are listed"


def test_an_unknown_key_in_an_override_is_reported_with_the_override(specs):
    (specs / "p.yaml").write_text("optim: {lr: 1.0}\n")

    with pytest.raises(ConfigError) as caught:
        load_finetune("p", ["trian.steps=3"])

    assert caught.value.where == "--set trian.steps=3"
    assert "did you mean 'train'?" in caught.value.hint


@pytest.mark.parametrize("first", ["optim.lr=2", "optim={lr: 2}"])
def test_a_wrong_value_is_blamed_on_the_override_that_counts(specs, first):
    (specs / "p.yaml").write_text("optim: {lr: 1.0}\n")

    with pytest.raises(ConfigError) as caught:
        load_finetune("p", [first, "train.steps=3", "optim.lr=none"])

    assert caught.value.where == "--set optim.lr=none"


def test_settings_that_contradict_each_other_are_reported_in_plain_words(specs):
    (specs / "p.yaml").write_text("train: {keep: best}\ndata: {validation: []}\n")

    with pytest.raises(ConfigError) as caught:
        load_finetune("p")

    assert caught.value.message.startswith("settings: train.keep=best and train.patience need validations")


def test_several_mistakes_are_reported_together(specs):
    (specs / "p.yaml").write_text("train: {steps: 0, precision: fp64}\n")

    with pytest.raises(ConfigError) as caught:
        load_finetune("p")

    assert "train.steps" in caught.value.message
    assert "train.precision" in caught.value.message


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim..lr=3", "optim.lr=[1,"])
def test_a_malformed_override_is_a_config_error(override):
    with pytest.raises(ConfigError) as caught:
        apply_overrides({}, [override])

    assert caught.value.where == f"--set {override}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\n", "not YAML"),
        ("- 1\n", "mapping"),
        ("train: {steps: 1}\ntrain: {steps: 2}\n", "twice"),
        ("!!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path, text, problem):
    file = tmp_path / "x.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=problem) as caught:
        read_yaml(file)

    assert caught.value.where == str(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_finetune(str(tmp_path / "nothing.yaml"))

    assert caught.value.where == str(tmp_path / "nothing.yaml")


def test_merge_changes_neither_of_its_arguments():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}

    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_explained_settings_load_as_the_same_settings(tmp_path):
    settings = load_finetune("synthetic_small", ["optim.lr=3e-7", "data.kinds=[ordinal]"])
    file = tmp_path / "run.yaml"
    file.write_text(explain(settings))

    assert load_finetune(str(file)) == settings


def test_validate_names_the_file_and_key():
    with pytest.raises(ConfigError) as caught:
        validate(OptimSettings, {"layer_decay": 2}, where="there.yaml")

    assert caught.value.where == "there.yaml: layer_decay"


def test_every_shipped_finetune_preset_loads_and_states_its_purpose():
    names = list_presets("finetune")

    assert names
    for name in names:
        load_finetune(name)
        assert headline(preset_path("finetune", name)), name


def test_an_unknown_preset_is_answered_with_the_nearest(specs):
    (specs / "base_rec.yaml").write_text("train: {steps: 1}\n")

    for search in (lambda: preset_path("finetune", "base_rex"), lambda: find_preset("base_rex")):
        with pytest.raises(ConfigError) as caught:
            search()
        assert "did you mean 'base_rec'?" in caught.value.hint


def test_a_name_that_two_groups_share_needs_its_group(specs):
    (specs / "same.yaml").write_text("{}\n")
    other = specs.parent / "evaluate"
    other.mkdir()
    (other / "same.yaml").write_text("{}\n")

    with pytest.raises(ConfigError, match="2 presets are called"):
        find_preset("same")
    assert find_preset("evaluate/same") == other / "same.yaml"


@pytest.mark.parametrize("name", ["/dev/zero", "a/b/c", "x/", "finetune/", "/"])
def test_an_unknown_name_with_slashes_is_reported_as_it_was_typed(name):
    with pytest.raises(ConfigError, match=f"no preset called '{name}'"):
        find_preset(name)
