"""The fine-tuning presets of OneRef have the values of its scripts and tables; stages override common settings."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import yaml

from refcli.config import presets
from refcli.config.explain import explain
from refcli.config.load import load_finetune, stages_of, validate
from refcli.config.presets import data_specs_root, list_presets, preset_path
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.oneref.head import OneRefSettings

NUM_GPUS = 8
NUM_EXPRESSIONS = {
    "refcoco_unc": 120_624,
    "refcoco_plus_unc": 120_191,
    "refcocog_umd": 80_512,
    "referit": 54_127,
    "flickr30k": 427_193,
    "mixup_refc": 321_327,
}
COCO = {"refcoco": "refcoco_unc", "refcocoplus": "refcoco_plus_unc", "refcocog": "refcocog_umd"}
REC = {**COCO, "referit": "referit", "flickr30k": "flickr30k"}
MIXED = {"mixed": "mixup_refc"}
MIXED_REC = {**MIXED, "mixed_referit": "referit", "mixed_flickr30k": "flickr30k"}
TOWERS = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
LOSSES = ("box_l1", "box_giou", "similarity_focal", "similarity_dice", "mask_focal", "mask_dice")
SYSTEMS = {"base": "OneRef-B", "large": "OneRef-L"}
OFFICIAL = [
    (task, size, name, dataset)
    for task, size in itertools.product(("rec", "res"), ("base", "large"))
    for name, dataset in {
        **(REC if task == "rec" else COCO),
        **(MIXED_REC if task == "rec" else MIXED),
    }.items()
]
OURS = ["oneref_joint_base", "oneref_joint_large", "oneref_joint_existence_base"]


def batch_of(size: str, name: str, stage: str) -> int:
    """Samples per GPU in the scripts."""
    if stage == "frozen":
        return 64
    if size == "large":
        return 8
    return 24 if name in COCO else 32


def losses_of(settings) -> tuple[float, ...]:
    """The weights of the losses that the head computes."""
    head = OneRefSettings.model_validate(settings.model.head.settings)
    on = {"box": head.rec, "mask": head.res, "similarity": True}
    return tuple(getattr(head.loss_weights, name) if on[name.partition("_")[0]] else 0 for name in LOSSES)


def header_of(name: str) -> str:
    text = preset_path("finetune", name).read_text()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line[:1] == "#", text.splitlines()))


def test_every_row_of_the_recipes_has_a_preset():
    names = {f"oneref_{task}_{size}_{name}" for task, size, name, _ in OFFICIAL}

    assert {name for name in list_presets("finetune") if name.startswith("oneref_")} == names | set(OURS)


@pytest.mark.parametrize("name", list_presets("finetune"))
def test_every_preset_resolves_and_states_its_data_and_sources(name):
    settings = load_finetune(name)

    assert all(stage.model.tower == settings.model.tower for stage in stages_of(settings).values())
    of_oneref = ("Hardware:", "Hours:", "Run:") if name.startswith("oneref_") else ()
    for word in ("Paper row:", "Expected scores", "Data:", *of_oneref):
        assert word in header_of(name)


@pytest.mark.parametrize("name", list_presets("finetune"))
def test_every_split_is_one_that_prepare_data_writes(name):
    known = {"synthetic:train", "synthetic:val", "synthetic:focus", "synthetic:count"}
    for file in (data_specs_root() / "datasets").glob("*.yaml"):
        splits = yaml.safe_load(file.read_text()).get("splits", {})
        known |= {f"{file.stem}:{split}" for split in splits}
    data = load_finetune(name).data

    assert {*data.train, *data.validation} <= known


@pytest.mark.parametrize(("task", "size", "name", "dataset"), OFFICIAL)
def test_the_recipes_are_the_scripts(task, size, name, dataset):
    settings = load_finetune(f"oneref_{task}_{size}_{name}")
    stages = stages_of(settings)

    assert list(stages) == ["frozen", "all"]
    assert (settings.data.train, settings.data.validation) == ((f"{dataset}:train",), (f"{dataset}:val",))
    starts = None if name in MIXED_REC else f"beit3-{size}"
    assert [stage.train.init_weights for stage in stages.values()] == [starts, None]
    for stage_name, epochs, lr in (("frozen", 10, 2.5e-4), ("all", 20, 3e-5)):
        tower, optim, train = stages[stage_name].model.tower, stages[stage_name].optim, stages[stage_name].train
        batch = batch_of(size, name, stage_name)
        per_epoch = NUM_EXPRESSIONS[dataset] // (NUM_GPUS * batch)
        assert (tower.dim, tower.layers, tower.heads, tower.ffn_dim) == TOWERS[size]
        assert (tower.image_size, tower.patch_size, tower.drop_path) == ((384, 384), 16, 0.1)
        assert (tower.vocabulary_size, settings.model.text.max_tokens) == (64010, 64)
        assert (train.batch_size, train.steps) == (batch, epochs * per_epoch)
        assert (train.save_every, train.validate_every) == (per_epoch, per_epoch)
        assert train.freeze_tower is (stage_name == "frozen")
        assert (train.precision, train.ema_decay, train.accumulate, train.seed) == ("fp32", None, 1, 13)
        assert (train.keep, train.best_by) == ("best", "box_accuracy" if task == "rec" else "mask_iou")
        assert (optim.lr, optim.name, optim.betas, optim.weight_decay) == (lr, "adamw", (0.9, 0.999), 1e-4)
        assert optim.decay_norms_and_biases
        assert (optim.warmup_steps, optim.clip_grad_norm, optim.layer_decay, optim.tower_lr_scale) == (0, None, 1, 1)
    losses = [losses_of(stage) for stage in stages.values()]
    rec, res = [(1, 1, 0, 0, 0, 0), (1, 1, 20, 2, 0, 0)], [(0, 0, 0, 0, 20, 2)] * 2
    assert losses == (rec if task == "rec" else res)


@pytest.mark.parametrize(("task", "size", "name", "dataset"), [row for row in OFFICIAL if row[2] in {**REC, **MIXED}])
def test_the_expected_scores_are_the_published_ones(task, size, name, dataset):
    training = "mixed" if name == "mixed" else "single"
    wanted = COCO.values() if name == "mixed" else [dataset]
    metrics = ("acc50",) if task == "rec" else ("mask_miou", "mask_oiou")
    tables = yaml.safe_load((data_specs_root() / "published_results.yaml").read_text())["tables"]
    rows = [
        (table["splits"], table["systems"][SYSTEMS[size]])
        for table in tables
        if table["metric"] in metrics and table["training"] == training and SYSTEMS[size] in table["systems"]
    ]
    assert len(rows) == len(metrics)
    for splits, figures in rows:
        for evaluated in wanted:
            own = [figure for split, figure in zip(splits, figures, strict=True) if split.startswith(f"{evaluated}:")]
            assert "/".join(f"{figure:.2f}" for figure in own) in header_of(f"oneref_{task}_{size}_{name}")


@pytest.mark.parametrize(
    "name", ["oneref_rec_base_refcoco", "oneref_res_base_refcoco", "oneref_joint_base", "oneref_joint_existence_base"]
)
def test_the_base_models_can_be_built(name):
    for stage in stages_of(load_finetune(name)).values():
        with torch.device("meta"):
            grounder = Grounder.from_settings(stage.model)
        head = OneRefSettings.model_validate(stage.model.head.settings)
        assert (hasattr(grounder.head, "box_mlp"), hasattr(grounder.head, "upsampler")) == (head.rec, head.res)
        assert hasattr(grounder.head, "existence") is head.existence is ("existence" in name)


def test_the_joint_models_train_boxes_and_masks_in_both_stages():
    for name in OURS:
        assert [losses_of(stage) for stage in stages_of(load_finetune(name)).values()] == [(1, 1, 20, 2, 20, 2)] * 2


@pytest.mark.parametrize("name", ["oneref_rec_base_flickr30k", "oneref_rec_large_flickr30k"])
def test_phrase_grounding_names_the_recall_of_both_protocols(name):
    assert re.search(r"recall1_union.*recall1_any", header_of(name))


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A preset of two stages over common settings."""
    folder = tmp_path / "specs" / "presets" / "finetune"
    folder.mkdir(parents=True)
    monkeypatch.setattr(presets, "data_specs_root", lambda: tmp_path / "specs")
    (folder / "two.yaml").write_text(
        "train: {init_weights: some, seed: 5}\n"
        "stages:\n"
        "  zero: {train: {freeze_tower: true, steps: 3}, optim: {lr: 0.5}}\n"
        "  all: {train: {steps: 4}, model: {head: {settings: {res: true}}}}\n"
    )
    return folder


def test_stages_lie_over_the_common_settings_in_their_order(staged):
    stages = stages_of(load_finetune("two", ["stages.all.train.steps=7"]))

    assert list(stages) == ["zero", "all"]
    assert [stage.train.steps for stage in stages.values()] == [3, 7]
    assert [stage.train.freeze_tower for stage in stages.values()] == [True, False]
    assert [stage.train.seed for stage in stages.values()] == [5, 5]
    assert [stage.train.init_weights for stage in stages.values()] == ["some", None]
    assert stages["zero"].optim.lr == 0.5
    assert stages["all"].model.head.settings == {"res": True}


def test_an_extending_preset_changes_one_setting_of_one_stage(staged):
    (staged / "longer.yaml").write_text("extends: two\nstages: {all: {train: {steps: 9}}}\n")

    assert [stage.train.steps for stage in stages_of(load_finetune("longer")).values()] == [3, 9]


def test_staged_settings_survive_being_written_and_read(staged):
    settings = load_finetune("two")
    read = validate(type(settings), yaml.safe_load(explain(settings)), where="this test")

    assert read == settings
    assert list(read.stages) == ["zero", "all"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=9", "--set stages.zero.train.steps=..."),
        ("stages.zero.train.stepz=9", "did you mean 'steps'?"),
        ("stages.zero.trian={}", "did you mean 'train'?"),
        ("stages.all.model.tower.dim=9", "known: head"),
        ("stages.all.train.init_weights=x", "the previous one"),
        ("stages.Last={}", "known: zero, all"),
        ("stages.al.train.steps=3", "did you mean 'all'?"),
        ("stages.all.optim.lr=fast", "valid number"),
        ("train.best_by=accuracy", "'box_accuracy', 'mask_iou'"),
        ("train.patience=2", "validate_every"),
    ],
)
def test_a_mistake_about_stages_or_the_best_checkpoint_is_reported_with_its_place(staged, override, message):
    with pytest.raises(ConfigError) as caught:
        load_finetune("two", [override])

    assert message in str(caught.value)
    assert f"--set {override}" in caught.value.where


def test_the_best_cannot_be_kept_without_validation(staged):
    with pytest.raises(ConfigError, match=r"name splits in data\.validation"):
        load_finetune("two", ["train.keep=best"])
    kept = load_finetune("two", ["train.keep=best", "data.validation=[a:val]"])
    assert {stage.train.keep for stage in stages_of(kept).values()} == {"best"}


def test_a_mistake_in_a_stage_of_a_file_is_reported_with_file_and_key(staged):
    (staged / "wrong.yaml").write_text("extends: two\nstages: {all: {optim: {lrr: 1}}}\n")

    with pytest.raises(ConfigError, match="no setting called 'lrr'") as caught:
        load_finetune("wrong")
    assert caught.value.where == f"{staged / 'wrong.yaml'}: stages.all.optim.lrr"
