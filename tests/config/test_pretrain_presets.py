"""The pre-training presets have the values of OneRef's scripts and paper."""

from __future__ import annotations

import itertools

import pytest

from refcli.config.load import load_finetune, load_pretrain
from refcli.config.presets import list_presets, preset_path

NUM_EXPRESSIONS = {"mixup_refc_referit:train": 375_454, "mixup_refc:train": 321_327}
NUM_GPUS = 8
TRAIN_SPLIT = {"rec": "mixup_refc_referit:train", "res": "mixup_refc:train"}
TOWERS = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
BATCH = {("1", "base"): 64, ("1", "large"): 64, ("2", "base"): 32, ("2", "large"): 8}
LR = {("1", "base"): 2.5e-4, ("1", "large"): 2.5e-4, ("2", "base"): 5e-5, ("2", "large"): 3e-5}
EPOCHS = {"1": 10, "2": 100}
RECIPES = list(itertools.product(("rec", "res"), ("base", "large"), ("1", "2")))
OFFICIAL = [f"mrefm_{task}_{size}_stage{stage}" for task, size, stage in RECIPES]
SYNTHETIC = ["mrefm_synthetic_small", "synthetic_tiny"]
VARIANTS = ["official_script", "paper", "mlm_mim_vanilla"]


def changes(name, origin="official_script"):
    """Settings of MRefM that differ from another preset's, by dotted key."""

    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    here, there = (dict(leaves(load_pretrain(each).mrefm.model_dump())) for each in (name, origin))
    return {key: value for key, value in here.items() if value != there[key]}


def test_all_presets_are_known_to_this_test():
    assert set(list_presets("pretrain")) - {"visual_tokenizer_small"} == {*OFFICIAL, *SYNTHETIC, *VARIANTS}


@pytest.mark.parametrize("name", list_presets("pretrain"))
def test_every_preset_resolves_and_states_its_sources(name):
    load_pretrain(name)
    head = preset_path("pretrain", name).read_text().split("\n\n")[0]
    header = " ".join(line for line in head.splitlines() if line.startswith("#"))

    for word in ("Paper row:", "Hardware:", "Expected scores:", "Data:"):
        assert word in header


@pytest.mark.parametrize(("task", "size", "stage"), RECIPES)
def test_the_recipes_are_the_scripts(task, size, stage):
    settings = load_pretrain(f"mrefm_{task}_{size}_stage{stage}")
    tower, optim, train = settings.model.tower, settings.optim, settings.train
    split = TRAIN_SPLIT[task]
    per_epoch = NUM_EXPRESSIONS[split] // (NUM_GPUS * BATCH[stage, size])

    assert settings.data.train == (split,)
    assert (tower.dim, tower.layers, tower.heads, tower.ffn_dim) == TOWERS[size]
    assert (tower.image_size, tower.patch_size, tower.drop_path) == ((384, 384), 16, 0.1)
    assert (tower.vocabulary_size, settings.model.text.max_tokens) == (64010, 64)
    assert train.batch_size == BATCH[stage, size]
    assert train.steps == EPOCHS[stage] * per_epoch
    assert train.save_every == per_epoch
    assert train.freeze_tower is (stage == "1")
    assert train.init_weights == (f"beit3-{size}" if stage == "1" else None)
    assert (train.precision, train.ema_decay, train.accumulate, train.seed) == ("fp32", None, 1, 13)
    assert optim.lr == LR[stage, size]
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.999), 1e-4)
    assert optim.decay_norms_and_biases
    assert (optim.warmup_steps, optim.clip_grad_norm, optim.layer_decay, optim.tower_lr_scale) == (0, None, 1.0, 1.0)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_recipes_have_the_objective_of_the_scripts(name):
    settings = load_pretrain(name)
    mrefm, weights = settings.mrefm, settings.mrefm.loss_weights

    assert changes(name) == {}
    assert (weights.mim, weights.mlm, weights.grounding) == (1, 1, 1)
    assert (weights.visual_target_relation, weights.semantic_target_relation) == (0, 0)
    assert mrefm.image_masking.method == "uniform"
    assert (mrefm.image_masking.region_ratio, mrefm.image_masking.context_ratio) == (0.75, 0.35)
    assert (mrefm.text_masking.ratio, mrefm.drop_worst_after, mrefm.drop_worst_ratio) == (0.4, 12000, 0.2)
    assert mrefm.visual_codes.weights == "vqkd"
    head = settings.model.head.settings
    assert (head["rec"], head["res"], head["similarity_truth"]) == (False, False, "box")
    assert head["loss_weights"] == {"similarity_focal": 20.0, "similarity_dice": 2.0}


def test_the_paper_has_blocks_products_and_both_relation_scores():
    assert changes("paper") == {
        "image_masking.method": "block",
        "image_masking.margin": 0,
        "mlm_input": "product",
        "loss_weights.visual_target_relation": 1.0,
        "loss_weights.semantic_target_relation": 1.0,
    }


def test_the_baseline_is_independent_of_the_referent():
    assert changes("mlm_mim_vanilla") == {
        "image_masking.method": "vanilla",
        "image_masking.context_ratio": 0.4,
        "text_masking.prefer": "none",
        "mim_input": "patch",
        "loss_weights.grounding": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "finetuning"), [("mrefm_synthetic_small", "synthetic_small"), ("synthetic_tiny", "synthetic_tiny")]
)
def test_the_synthetic_runs_make_a_tower_that_finetuning_starts_from(name, finetuning):
    before, after = load_pretrain(name), load_finetune(finetuning)

    assert before.model.tower == after.model.tower
    assert before.model.text == after.model.text
    assert before.model.head.settings.items() <= {**after.model.head.settings, "rec": False}.items()
    assert before.mrefm.visual_codes.source == "pixel_clusters"
    assert before.mrefm.semantic_targets.refresh_every
    assert all(before.mrefm.loss_weights.model_dump().values())
