"""The existence threshold is chosen on the validation samples, stored in the weights, and used."""

import numpy as np
import pytest

from refcli.config.load import apply_overrides, validate
from refcli.config.schema import FinetuneSettings
from refcli.data.store.read import Store
from refcli.engine.reporting.reporters import SilentReporter
from refcli.errors import ConfigError, DataError
from refcli.evaluation.calibration import calibrate_existence
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.recipes.evaluate import ModelSelection, SplitSelection, evaluate_model
from refcli.recipes.finetune import finetune, preview
from refcli.weights.directory import load_weights

HEADS = {
    "instances": {"dim": 16, "mask_dim": 8, "heads": 2, "ffn_dim": 16},
    "oneref": {"res": True, "existence": True, "similarity_scale": 10.0},
    "rela": {
        "dim": 16, "heads": 2, "regions": 2, "decoder_layers": 1, "decoder_ffn_dim": 16, "pixel_layers": 0,
        "pyramid_channels": [8, 8, 8, 8],
    },
}  # fmt: skip


class Noting(SilentReporter):
    def __init__(self):
        self.notes = []

    def noted(self, text):
        self.notes.append(text)


def changed(settings: FinetuneSettings, head: str, *overrides: str) -> FinetuneSettings:
    values = apply_overrides(settings.model_dump(), overrides)
    values["model"]["head"] = {"name": head, "settings": HEADS[head]}
    return validate(FinetuneSettings, values, where="this test")


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_threshold_is_chosen_on_the_validation_samples_and_predict_and_evaluate_use_it(
    tmp_path, half_empty, settings, head
):
    reporter = Noting()
    asked = changed(settings, head, "train.existence_min_t_acc=0.7", "train.steps=4")
    weights = finetune(asked, store_path=half_empty, out=tmp_path / "run", reporter=reporter)

    loaded = load_weights(str(weights))
    threshold = loaded.settings.head.settings["existence_threshold"]
    split = Store(half_empty).split("squares:val")
    examples = [split[row] for row in range(len(split))]
    requests = [Request(one.id, one.image, one.expression, split.image_path(one)) for one in examples]
    raw = list(Predictor(str(weights), precision="fp32").answer_requests(requests, raw=True))
    existence = np.array([1 - answered.answer.no_target_score for answered in raw])
    has_target = np.array([bool(one.regions) for one in examples])
    assert threshold == pytest.approx(calibrate_existence(existence, has_target, min_t_acc=0.7), abs=1e-4)
    assert threshold != 0.5
    answers = list(Predictor(str(weights), precision="fp32").predict_many(requests))
    says_none = existence < threshold
    assert all(answer.no_target for answer, none in zip(answers, says_none, strict=True) if none)
    if head != "rela":  # which has a box for everything that it lets through
        assert [answer.no_target for answer in answers] == says_none.tolist()

    t_acc = np.mean(~says_none[has_target])  # the decision counts, whatever the mask shows
    model = ModelSelection(str(weights), precision="fp32")
    metrics = evaluate_model(SplitSelection(half_empty, ["squares:val"]), model).document["metrics"]
    assert metrics["squares/val/t_acc"] == pytest.approx(t_acc)
    story = loaded.meta["existence_threshold_from"]
    assert story["splits"] == ["squares:val"]
    assert story["t_acc"] == pytest.approx(np.mean(~says_none[has_target]))
    assert story["n_acc"] == pytest.approx(np.mean(says_none[~has_target]))
    assert any("existence_threshold" in note for note in reporter.notes)
    assert "existence_threshold" in (tmp_path / "run" / "log.txt").read_text()


def test_the_scores_of_instances_are_shifted_so_that_the_best_threshold_is_that_of_the_field(
    tmp_path, half_empty, settings
):
    reporter = Noting()
    asked = changed(settings, "instances", "train.steps=6")
    weights = finetune(asked, store_path=half_empty, out=tmp_path / "run", reporter=reporter)

    loaded = load_weights(str(weights))
    assert loaded.settings.head.settings["score_threshold"] != 0.5
    model = ModelSelection(str(weights), precision="fp32")
    metrics = evaluate_model(SplitSelection(half_empty, ["squares:val"]), model).document["metrics"]
    assert metrics["squares/val/grec_pr_iou"] == pytest.approx(loaded.meta["score_threshold_from"]["exact_sets"])
    assert any(note.startswith("score_threshold") for note in reporter.notes)


def test_without_the_setting_the_heads_own_threshold_stays(tmp_path, half_empty, settings):
    weights = finetune(
        changed(settings, "oneref", "train.steps=1"),
        store_path=half_empty,
        out=tmp_path / "run",
        reporter=SilentReporter(),
    )
    assert load_weights(str(weights)).settings.head.settings["existence_threshold"] == 0.5


def test_impossible_calibrations_are_refused_before_training(half_empty, store, settings):
    asked = changed(settings, "oneref", "train.existence_min_t_acc=0.9")
    with pytest.raises(DataError, match="8 have a target; a threshold needs both"):
        preview(asked, store_path=store)
    values = asked.model_dump()
    values["model"]["head"]["settings"] = {"res": True}
    with pytest.raises(ConfigError, match="no existence output"):
        preview(validate(FinetuneSettings, values, where="this test"), store_path=half_empty)
    with pytest.raises(ConfigError, match=r"name splits in data\.validation"):
        changed(asked, "oneref", "data.validation=[]", "train.validate_every=null")
