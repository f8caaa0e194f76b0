"""Pre-training reports mistakes before anything costly, and needs packages and weights only if it uses them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from refcli.config.load import apply_overrides, load_pretrain, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import ModelSettings
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import SilentReporter
from refcli.errors import ConfigError, UsageError
from refcli.grounder import Grounder
from refcli.pretraining.pixel_clusters import PixelClusters
from refcli.recipes import pretrain as recipe
from refcli.recipes import word_scorer
from refcli.recipes.pretrain import build, pretrain
from refcli.weights.directory import save_weights

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def tiny() -> Callable[..., PretrainSettings]:
    """The preset for tests, shortened and changed."""

    def make(*overrides: str) -> PretrainSettings:
        short = (
            'data.train=["squares:train"]', "data.validation=[]", "data.workers=0", "train.steps=4",
            "train.batch_size=4", "train.log_every=1", "train.validate_every=null", "mrefm.visual_codes.num_codes=8",
        )  # fmt: skip
        values = apply_overrides(load_pretrain("synthetic_tiny").model_dump(), [*short, *overrides])
        return validate(PretrainSettings, values, where="this test")

    return make


def weights_of(model: ModelSettings, path: Path) -> str:
    """Random weights of a model, as training might have left them."""
    save_weights(path, Grounder.from_settings(model), model, meta={"tasks": []})
    return str(path)


class Notes(SilentReporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def noted(self, text: str) -> None:
        self.texts.append(text)


def test_an_occupied_directory_is_refused_before_anything_is_built(tmp_path, store, tiny, monkeypatch):
    built = []
    monkeypatch.setattr(recipe, "build", lambda *_: built.append(True))
    (tmp_path / "mine.txt").write_text("do not touch")
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="not empty") as caught:
        pretrain(tiny(), store_path=store, out=tmp_path, reporter=SilentReporter())
    with pytest.raises(UsageError, match="a file"):
        pretrain(tiny(), store_path=store, out=tmp_path / "file", reporter=SilentReporter())
    assert not built
    assert "--resume" in caught.value.hint and "--force" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.txt"]


@dataclass(frozen=True)
class Second(World):
    """The second of two processes; what the first one gathers is `first`."""

    first: object = None

    def any(self, flag):
        return flag

    def gather(self, value):
        return [self.first, value]


def test_patches_are_clustered_by_the_main_process_alone_and_the_others_have_its_means(store, tiny, monkeypatch):
    found = build(tiny(), store, ALONE).objective.codes
    monkeypatch.setattr(PixelClusters, "fit", lambda *_, **__: pytest.fail("clustered again"))
    other = build(tiny(), store, Second(1, 2, torch.device("cpu"), found.state_dict())).objective.codes

    assert other.is_fitted
    assert torch.equal(other.means, found.means)


def test_a_word_scorer_that_stays_random_is_refused_with_the_remedies(store, tiny):
    with pytest.raises(ConfigError, match="stay random") as caught:
        build(tiny("mrefm.semantic_targets.refresh_every=null"), store, ALONE)
    assert caught.value.where == "mrefm.semantic_targets"
    for remedy in ("--init", "semantic_targets.weights", "refresh_every", "semantic_target_relation=0"):
        assert remedy in caught.value.hint


def test_a_word_scorer_with_random_projections_is_refused(tmp_path, store, tiny):
    settings = tiny("mrefm.semantic_targets.refresh_every=null")
    head = settings.model.head.model_copy(update={"name": "shared_ris", "settings": {}})
    weights = weights_of(settings.model.model_copy(update={"head": head}), tmp_path / "weights")
    with pytest.raises(ConfigError, match="have the head 'shared_ris', so the projections"):
        build(tiny("mrefm.semantic_targets.refresh_every=null", f"train.init_weights={weights}"), store, ALONE)


@pytest.mark.parametrize("remedy", ["init", "weights", "refresh", "off", "resume"])
def test_every_remedy_works(tmp_path, store, tiny, remedy):
    weights = weights_of(tiny().model, tmp_path / "weights")
    change = {
        "init": f"train.init_weights={weights}",
        "weights": f"mrefm.semantic_targets.weights={weights}",
        "refresh": "mrefm.semantic_targets.refresh_every=7",
        "off": "mrefm.loss_weights.semantic_target_relation=0",
        "resume": "train.steps=5",
    }[remedy]
    parts = build(tiny("mrefm.semantic_targets.refresh_every=null", change), store, ALONE, remedy != "resume")

    assert (parts.objective.teacher is None) is (remedy == "off")


def test_weights_that_score_words_with_another_head_or_another_tokenizer_are_refused(
    tmp_path, store, tiny, monkeypatch
):
    model = tiny().model
    head = model.head.model_copy(update={"name": "shared_ris", "settings": {}})
    scoring = ["mrefm.semantic_targets.refresh_every=null", "mrefm.semantic_targets.weights="]
    other = weights_of(model.model_copy(update={"head": head}), tmp_path / "head")
    with pytest.raises(ConfigError, match="the head 'shared_ris'") as of_head:
        build(tiny(scoring[0], scoring[1] + other), store, ALONE)

    class OtherTokenizer:
        model = b"other pieces"

    same = weights_of(model, tmp_path / "same")
    monkeypatch.setattr(word_scorer, "load_tokenizer", lambda text: OtherTokenizer)
    with pytest.raises(ConfigError, match="their tokenizer is not the model's") as of_tokenizer:
        build(tiny(scoring[0], scoring[1] + same), store, ALONE)
    assert "oneref" in of_head.value.hint and "tokenizer" not in of_head.value.hint
    assert "model.text.tokenizer" in of_tokenizer.value.hint


def test_without_mim_no_codes_are_needed_and_a_run_completes(tmp_path, store, tiny):
    settings = tiny("mrefm.loss_weights.mim=0", "mrefm.visual_codes.source=tokenizer")  # and no tokenizer is named
    weights = pretrain(settings, store_path=store, out=tmp_path / "run", reporter=SilentReporter())

    assert build(settings, store, ALONE).objective.codes is None
    again = build(tiny(f"train.init_weights={weights}"), store, ALONE)
    assert any("newly initialised: the pre-training heads mim" in note for note in again.notes)


def test_spacy_is_needed_only_if_words_are_masked_by_role(store, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    spacy = "mrefm.text_masking.parser=spacy"
    with pytest.raises(ConfigError, match="spaCy is not installed"):
        build(tiny(spacy), store, ALONE)

    build(tiny(spacy, "mrefm.text_masking.prefer=none"), store, ALONE)
    no_words = "mrefm.loss_weights={mlm: 0, semantic_target_relation: 0, grounding: 0}"
    build(tiny(spacy, no_words, "mrefm.alternate=false"), store, ALONE)


def test_averaging_a_visual_tokenizer_is_refused(tiny):
    with pytest.raises(ConfigError, match="moving averages already") as caught:
        tiny("objective=visual_tokenizer")
    assert "train.ema_decay=null" in str(caught.value)
    assert tiny("objective=visual_tokenizer", "train.ema_decay=null").objective == "visual_tokenizer"


def test_a_resumed_run_of_another_length_reports_the_jump_of_the_learning_rate(tmp_path, store, tiny):
    first, same, longer = Notes(), Notes(), Notes()
    run = {"store_path": store, "out": tmp_path / "run"}
    pretrain(tiny("optim.warmup_steps=1"), **run, reporter=first)
    pretrain(tiny("optim.warmup_steps=1"), **run, resume=True, reporter=same)
    pretrain(tiny("optim.warmup_steps=1", "train.steps=8"), **run, resume=True, reporter=longer)

    assert not any("train.steps" in note for note in first.texts + same.texts)
    (note,) = (note for note in longer.texts if "train.steps changed from 4 to 8" in note)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines}  # that of step 5 is the first one of the longer schedule
    assert f"at step 4 it jumps from 0 to {rates[5]:.3g}" in note
    assert rates[5] > rates[4]
