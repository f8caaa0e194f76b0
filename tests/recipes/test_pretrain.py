"""Pre-training from a store to weights: real targets, exact resume, and a start for fine-tuning or a second stage."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from refcli.config.load import apply_overrides, load_pretrain, validate
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import HeadChoice
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import SilentReporter
from refcli.engine.stopping import StoppedError
from refcli.errors import ConfigError, WeightsError
from refcli.inference.predictor import Predictor
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.pixel_clusters import PixelClusters
from refcli.recipes.finetune import finetune
from refcli.recipes.pretrain import build, pretrain, preview
from refcli.weights.checks import verify
from refcli.weights.directory import load_weights

ALONE = World(0, 1, torch.device("cpu"))
CLOCK = {
    "seconds",
    "samples_per_second",
    "tokens_per_second",
    "flops_utilisation",
    "waiting_for_data",
    "validation/seconds",
}


@pytest.fixture
def tiny() -> PretrainSettings:
    """The preset for tests, shortened."""
    return changed(
        load_pretrain("synthetic_tiny"), 'data.train=["squares:train"]', 'data.validation=["squares:val"]',
        "train.steps=6", "train.batch_size=4", "train.validate_every=6", "train.save_every=2", "train.log_every=2",
        "train.precision=fp32", "mrefm.visual_codes.num_codes=8",
    )  # fmt: skip


def changed(settings: PretrainSettings, *overrides: str) -> PretrainSettings:
    return validate(PretrainSettings, apply_overrides(settings.model_dump(), overrides), where="this test")


def metrics(run) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


class StopAt(SilentReporter):
    """Sends this process a SIGTERM when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_has_every_term_and_weights_that_can_be_verified(tmp_path, store, tiny):
    weights = pretrain(tiny, store_path=store, out=tmp_path / "run", reporter=SilentReporter())

    terms = {"mim", "mlm", "visual_target_relation", "semantic_target_relation", "similarity_focal", "similarity_dice"}
    assert terms <= metrics(tmp_path / "run")[0].keys()
    assert {f"validation/{term}" for term in terms} <= metrics(tmp_path / "run")[-1].keys()
    assert verify(weights) == []
    assert json.loads((weights / "meta.json").read_text())["objective"] == "mrefm"
    with pytest.raises(WeightsError, match="only pre-trained"):
        Predictor(str(weights), device="cpu")
    heads = load_file(weights / "pretraining_heads.safetensors")
    assert heads["mim_head.weight"].shape[0] == 8 and "mlm_sts_head.layers.2.bias" in heads


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_and_resumed_run_ends_the_same_to_the_bit(tmp_path, store, tiny, stop):
    """The codes and the teacher are not recreated: they are part of the checkpoint."""
    changing = changed(tiny, "mrefm.semantic_targets.refresh_every=3")
    pretrain(changing, store_path=store, out=tmp_path / "whole", reporter=SilentReporter())
    with pytest.raises(StoppedError):
        pretrain(changing, store_path=store, out=tmp_path / "parts", reporter=StopAt(stop))
    pretrain(changing, store_path=store, out=tmp_path / "parts", resume=True, reporter=SilentReporter())

    for file in ("model.safetensors", "pretraining_heads.safetensors"):
        whole, parts = ((tmp_path / run / "weights" / file).read_bytes() for run in ("whole", "parts"))
        assert whole == parts
    assert metrics(tmp_path / "parts")[-1] == metrics(tmp_path / "whole")[-1]


def test_fine_tuning_starts_from_the_pretrained_tower(tmp_path, store, tiny, settings):
    weights = pretrain(tiny, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    same = settings.model_copy(update={"model": tiny.model.model_copy(update={"head": settings.model.head})})
    start = validate(
        type(settings),
        apply_overrides(same.model_dump(), [f"train.init_weights={weights}", "train.steps=1", "optim.lr=1e-12"]),
        where="this test",
    )
    finetune(start, store_path=store, out=tmp_path / "fine", reporter=SilentReporter())

    before, after = (
        load_weights(str(path)).grounder.tower.state_dict() for path in (weights, tmp_path / "fine/weights")
    )
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())


def test_a_second_stage_starts_from_tower_and_heads_of_the_first(tmp_path, store, tiny):
    weights = pretrain(tiny, store_path=store, out=tmp_path / "first", reporter=SilentReporter())
    parts = build(changed(tiny, f"train.init_weights={weights}"), store, ALONE)

    assert isinstance(parts.objective, MRefM)
    heads = load_file(weights / "pretraining_heads.safetensors")
    assert torch.equal(parts.objective.heads.mlm.weight, heads["mlm_head.weight"])
    assert torch.equal(parts.objective.heads.visual_target_relation[4].bias, heads["mim_vts_head.layers.2.bias"])


def test_a_frozen_tower_learns_nothing_and_the_heads_do(tmp_path, store, tiny):
    frozen = changed(tiny, "train.freeze_tower=true")
    fresh = build(frozen, store, ALONE).objective
    weights = pretrain(frozen, store_path=store, out=tmp_path / "run", reporter=SilentReporter())

    after = load_weights(str(weights)).grounder
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.grounder.tower.parameters(), after.tower.parameters(), strict=True)
    )
    assert not torch.equal(fresh.grounder.head.vision_projection.weight, after.head.vision_projection.weight)


def test_pixel_clusters_are_found_before_the_first_step(store, tiny):
    parts = build(tiny, store, ALONE)
    assert isinstance(parts.objective.codes, PixelClusters) and parts.objective.codes.is_fitted
    assert parts.objective.codes.means.std() > 0
    assert any("8 visual codes" in note for note in parts.notes)


def test_a_visual_tokenizer_is_trained_and_then_gives_the_codes(tmp_path, store, tiny):
    sizes = "{image_size: 64, patch_size: 16, dim: 16, layers: 1, heads: 2, ffn_dim: 32, num_codes: 8, code_dim: 4}"
    training = changed(
        tiny,
        "objective=visual_tokenizer",
        f"visual_tokenizer.sizes={sizes}",
        "data.validation=[]",
        "train.ema_decay=null",
    )
    weights = pretrain(training, store_path=store, out=tmp_path / "tokenizer", reporter=SilentReporter())
    assert verify(weights) == []

    using = changed(tiny, "mrefm.visual_codes.source=tokenizer", f"mrefm.visual_codes.weights={weights}")
    pretrain(using, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    assert metrics(tmp_path / "run")[0]["mim"] > 0


def test_another_head_is_refused(store, tiny):
    other = tiny.model.model_copy(update={"head": HeadChoice(name="shared_ris")})
    with pytest.raises(ConfigError, match="oneref"):
        build(tiny.model_copy(update={"model": other}), store, ALONE)


def test_a_dry_run_shows_the_masked_and_the_frozen_parts(store, tiny):
    text = "\n".join(preview(tiny, store_path=store))
    assert "hidden in step 0" in text and "patches" in text and "words" in text
    assert "word scorer" in text and "(frozen)" in text and "MRefM's heads" in text


def test_checkpoints_have_the_teacher_and_the_codes_once(tmp_path, store, tiny):
    pretrain(tiny, store_path=store, out=tmp_path / "run", reporter=SilentReporter())
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    model, average = (load_file(folder / f"{name}.safetensors").keys() for name in ("model", "ema"))

    assert {name.split(".")[0] for name in model} == {"grounder", "heads", "teacher", "codes"}
    assert average == {name for name in model if name.startswith(("grounder.", "heads."))}
