"""The tokenizer of `refcli weights pull beit3-tokenizer` is found wherever settings name beit3.spm."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from refcli.config.schema import HeadChoice, ModelSettings, TextSettings, TowerSettings
from refcli.errors import WeightsError
from refcli.grounder import Grounder
from refcli.text import tokenizer as text_tokenizer
from refcli.weights.checks import read_info, verify
from refcli.weights.directory import load_weights, read_settings, save_weights
from refcli.weights.tokenizers import find_tokenizer, load_tokenizer
from refcli.weights.transfer import start_from

OFFICIAL = TextSettings(tokenizer="beit3.spm")
MODEL = ModelSettings(
    tower=TowerSettings(image_size=32, patch_size=8, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=650),
    text=OFFICIAL,
    head=HeadChoice(settings={}),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder and an empty home; the packaged tokenizer stands in for the official one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
    num_pieces = text_tokenizer.Tokenizer.load(TextSettings()).num_pieces
    monkeypatch.setattr(text_tokenizer, "OFFICIAL_NUM_PIECES", num_pieces)


def put_pulled(tmp_path: Path) -> Path:
    """As `refcli weights pull beit3-tokenizer` leaves it."""
    path = tmp_path / "home" / "weights" / "beit3-tokenizer" / "beit3.spm"
    path.parent.mkdir(parents=True)
    path.write_bytes(files("refcli.text").joinpath("builtin.spm").read_bytes())
    return path


@pytest.fixture
def converted_too_early(tmp_path) -> Path:
    """Weights that were converted before the tokenizer was pulled: config.yaml names a missing file."""
    save_weights(
        tmp_path / "w", Grounder.from_settings(MODEL), MODEL.model_copy(update={"text": TextSettings()}), meta={}
    )
    values = MODEL.model_dump(mode="json")
    (tmp_path / "w" / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "w"


def test_the_pulled_file_replaces_only_a_missing_beit3_spm(tmp_path):
    assert find_tokenizer(OFFICIAL) == OFFICIAL
    pulled = put_pulled(tmp_path)
    assert find_tokenizer(OFFICIAL) == TextSettings(tokenizer=str(pulled))
    assert find_tokenizer(TextSettings(tokenizer="data/beit3.spm", max_tokens=9)) == TextSettings(
        tokenizer=str(pulled), max_tokens=9
    )
    for other in (TextSettings(), TextSettings(tokenizer="mine.spm")):
        assert find_tokenizer(other) == other
    Path("beit3.spm").write_bytes(pulled.read_bytes())
    assert find_tokenizer(OFFICIAL) == OFFICIAL


def test_the_hint_advises_to_pull_until_the_file_is_pulled(tmp_path):
    with pytest.raises(WeightsError, match="is missing") as missing:
        load_tokenizer(OFFICIAL)
    assert "`refcli weights pull beit3-tokenizer`" in missing.value.hint
    pulled = put_pulled(tmp_path)
    assert load_tokenizer(OFFICIAL).model == pulled.read_bytes()
    with pytest.raises(WeightsError, match="is missing") as other:
        load_tokenizer(TextSettings(tokenizer="mine.spm"))
    assert "pull" not in other.value.hint


def test_weights_converted_before_the_pull_work_after_it(tmp_path, converted_too_early):
    assert not read_info(converted_too_early).tokenizer_is_there
    assert any("`refcli weights pull beit3-tokenizer`" in problem for problem in verify(converted_too_early))
    with pytest.raises(WeightsError, match="is missing"):
        load_weights(str(converted_too_early))
    pulled = put_pulled(tmp_path)
    assert read_info(converted_too_early).tokenizer_is_there
    assert not any("tokenizer" in problem for problem in verify(converted_too_early))
    loaded = load_weights(str(converted_too_early))
    assert loaded.tokenizer.model == pulled.read_bytes()
    assert start_from(str(converted_too_early), Grounder.from_settings(MODEL), MODEL)[0].startswith("started from")


def test_the_tokenizer_in_the_directory_takes_precedence(tmp_path, converted_too_early):
    put_pulled(tmp_path)
    own = converted_too_early / "beit3.spm"
    own.write_bytes(files("refcli.text").joinpath("builtin.spm").read_bytes())
    assert read_settings(converted_too_early).text.tokenizer == str(own)


def test_saved_weights_include_the_pulled_tokenizer(tmp_path):
    pulled = put_pulled(tmp_path)
    save_weights(tmp_path / "w", Grounder.from_settings(MODEL), MODEL, meta={})
    content = pulled.read_bytes()
    pulled.unlink()
    assert load_weights(str(tmp_path / "w")).tokenizer.model == content
    assert verify(tmp_path / "w") == []
