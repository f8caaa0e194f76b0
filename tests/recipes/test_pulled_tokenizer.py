"""Runs with the tokenizer beit3.spm find the pulled file, and their run.yaml does not record its path."""

from __future__ import annotations

from importlib.resources import files

import pytest

from refcli.config.load import apply_overrides, load_pretrain, read_yaml, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings, TextSettings
from refcli.engine.reporting.reporters import SilentReporter
from refcli.recipes.finetune import finetune, preview
from refcli.recipes.pretrain import pretrain
from refcli.text import tokenizer as text_tokenizer
from refcli.weights.directory import load_weights


@pytest.fixture(autouse=True)
def pulled(tmp_path, monkeypatch) -> bytes:
    """The pulled tokenizer; the packaged one stands in for it, and the working folder is empty."""
    content = files("refcli.text").joinpath("builtin.spm").read_bytes()
    folder = tmp_path / "home" / "weights" / "beit3-tokenizer"
    folder.mkdir(parents=True)
    (folder / "beit3.spm").write_bytes(content)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
    num_pieces = text_tokenizer.Tokenizer.load(TextSettings()).num_pieces
    monkeypatch.setattr(text_tokenizer, "OFFICIAL_NUM_PIECES", num_pieces)
    return content


def check(run, pulled):
    assert read_yaml(run / "run.yaml")["model"]["text"]["tokenizer"] == "beit3.spm"
    assert load_weights(str(run / "weights")).tokenizer.model == pulled
    assert (run / "weights" / "tokenizer.spm").read_bytes() == pulled


@pytest.mark.parametrize("stages", [[], ["stages.one.train.steps=1", "stages.two.train.steps=1"]])
def test_fine_tuning_finds_the_pulled_tokenizer_with_and_without_stages(tmp_path, store, settings, stages, pulled):
    asked = ["model.text.tokenizer=beit3.spm", "train.steps=1", "train.validate_every=1", "data.workers=0", *stages]
    wanted = validate(FinetuneSettings, apply_overrides(settings.model_dump(), asked), where="this test")
    assert preview(wanted, store_path=store)
    finetune(wanted, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    check(tmp_path / "run", pulled)


def test_pre_training_finds_the_pulled_tokenizer(tmp_path, store, pulled):
    asked = [
        "model.text.tokenizer=beit3.spm", 'data.train=["squares:train"]', "data.validation=[]",
        "train.validate_every=null", "train.steps=1", "train.batch_size=4", "train.precision=fp32",
        "mrefm.visual_codes.num_codes=8",
    ]  # fmt: skip
    wanted = validate(
        PretrainSettings, apply_overrides(load_pretrain("synthetic_tiny").model_dump(), asked), where="this test"
    )
    pretrain(wanted, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    check(tmp_path / "run", pulled)
