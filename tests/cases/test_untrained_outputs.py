"""Outputs without targets in the training data are off in the weights, and reported before training starts."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from PIL import Image, ImageDraw

from refcli.config.load import load_finetune

SIDE = 48
CHANNELS = [16, 16, 16, 16]
HEADS = {
    "oneref": {"res": True, "existence": True, "mask_upsamples": 1, "similarity_scale": 10.0},
    "shared_ris": {"dim": 16, "heads": 2, "existence": True},
    "cgformer": {"dim": 16, "pyramid_channels": CHANNELS, "lite": True, "existence": True},
    "rela": {
        "dim": 16,
        "heads": 2,
        "regions": 2,
        "decoder_layers": 1,
        "decoder_ffn_dim": 16,
        "pixel_layers": 1,
        "pixel_ffn_dim": 16,
        "pyramid_channels": CHANNELS,
    },
}
WITHOUT_BOXES = [head for head in HEADS if head != "oneref"]


@pytest.fixture
def make_store(refcli, tmp_path):
    """A store of squares: `train` and `val`, each with samples of given sorts (box, mask, none)."""

    def make(name: str, *, train: str, val: str = "box") -> str:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        for split, sorts in (("train", train), ("val", val)):
            draw, lines = random.Random(split), []
            for number in range(6):
                sort = sorts.split()[number % len(sorts.split())]
                x, y = draw.randint(2, 20), draw.randint(2, 20)
                image = Image.new("RGB", (SIDE, SIDE), "white")
                ImageDraw.Draw(image).rectangle((x, y, x + 15, y + 15), "red")
                image.save(images / f"{split}{number}.png")
                line = {
                    "image": f"{split}{number}.png",
                    "expression": f"square {number}",
                    "width": SIDE,
                    "height": SIDE,
                }
                corners = [x, y, x + 16, y, x + 16, y + 16, x, y + 16]
                line |= {"no_target": True} if sort == "none" else {"box": [x, y, x + 16, y + 16]}
                line |= {"segmentation": [corners]} if sort == "mask" else {}
                lines.append(json.dumps(line))
            file = tmp_path / f"{name}-{split}.jsonl"
            file.write_text("\n".join(lines))
            out = tmp_path / name
            code, _, err = refcli(
                *("prepare-data", "--from", file, "--name", "mine", "--split", split, "--images", images, "--out", out)
            )
            assert code == 0, err
        return str(tmp_path / name)

    return make


@pytest.fixture
def train(refcli, tmp_path):
    """Train a small model for two steps; returns (exit code, stderr)."""

    def call(store: str, out: str, *options: str, head: str = "oneref", **settings: object) -> tuple[int, str]:
        values = load_finetune("synthetic_tiny").model_dump(mode="json")
        values["model"]["tower"] |= {"image_size": SIDE, "patch_size": 16, "dim": 16, "layers": 1, "heads": 2}
        values["model"]["tower"] |= {"ffn_dim": 16}
        values["model"]["head"] = {"name": head, "settings": {**HEADS[head], **settings}}
        values["data"] |= {"train": ["mine:train"], "validation": ["mine:val"], "workers": 0}
        values["train"] |= {"steps": 2, "batch_size": 3, "validate_every": 2, "device": "cpu", "log_every": 1}
        values["optim"] |= {"warmup_steps": 1}
        preset = tmp_path / f"{out}.yaml"
        preset.write_text(yaml.safe_dump(values))
        code, _, err = refcli("finetune", "-p", preset, "-d", store, "-o", tmp_path / out, *options)
        return code, err

    return call


@pytest.fixture
def answers(refcli, tmp_path):
    """The outputs of the weights of a run, as `weights info` shows them."""

    def call(run: str) -> list[str]:
        code, out, _ = refcli("weights", "info", tmp_path / run / "weights", "--json")
        assert code == 0
        return json.loads(out)["files"]["tasks"]

    return call


def validated(run) -> set[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name.removeprefix("validation/") for line in lines for name in line if name.startswith("validation/")}


def test_boxes_alone_train_a_model_that_answers_boxes(refcli, make_store, train, answers, tmp_path):
    code, err = train(make_store("boxes", train="box", val="mask none"), "run")
    assert code == 0, err
    assert "note: no sample of data.train has a mask: the mask output learns nothing and is off" in err
    assert "note: every sample of data.train has a target: the existence output" in err
    assert answers("run") == ["box"]
    assert not {"mask_iou", "mask_accuracy", "existence_accuracy"} & validated(tmp_path / "run")
    code, out, err = refcli(
        *("predict", tmp_path / "images" / "val0.png", "-e", "the red square", "-w", tmp_path / "run" / "weights")
    )
    assert code == 0, err
    (line,) = map(json.loads, out.splitlines())
    assert [target.get("mask") for target in line["targets"]] == [None]
    assert line["no_target_score"] is None
    code, _, err = refcli("weights", "verify", tmp_path / "run" / "weights")
    assert code == 0, err


def test_a_run_with_outputs_off_is_resumed_by_its_preset(make_store, train, answers):
    store = make_store("boxes", train="box")
    assert train(store, "run")[0] == 0
    code, err = train(store, "run", "--resume", "--set", "train.steps=3")
    assert code == 0, err
    assert answers("run") == ["box"]


def test_outputs_with_targets_stay_on(make_store, train, answers):
    code, err = train(make_store("all", train="mask box none"), "run")
    assert code == 0, err
    assert "learns nothing" not in err
    assert answers("run") == ["box", "mask", "existence"]


def test_outputs_that_earlier_weights_have_learnt_stay_on(make_store, train, answers, tmp_path):
    assert train(make_store("all", train="mask none"), "first")[0] == 0
    boxes = make_store("boxes", train="box")
    code, err = train(boxes, "second", "--init", str(tmp_path / "first" / "weights"))
    assert code == 0, err
    assert answers("second") == ["box", "mask", "existence"]
    assert train(boxes, "third")[0] == 0
    code, err = train(boxes, "fourth", "--init", str(tmp_path / "third" / "weights"))
    assert code == 0, err
    assert answers("fourth") == ["box"]


def test_all_stages_of_a_run_have_the_same_outputs(make_store, train, answers):
    stages = "stages={heads: {train: {freeze_tower: true, steps: 1}}, all: {train: {steps: 1}}}"
    code, err = train(make_store("boxes", train="box"), "run", "--set", stages)
    assert code == 0, err
    assert answers("run") == ["box"]
    assert err.count("the mask output learns nothing") >= 1


@pytest.mark.parametrize("head", WITHOUT_BOXES)
def test_a_head_trained_only_with_targets_has_no_existence_output(make_store, train, answers, head):
    code, err = train(make_store("masks", train="mask", val="mask"), "run", head=head)
    assert code == 0, err
    assert "the existence output learns nothing and is off" in err
    assert answers("run") == ["mask"]


@pytest.mark.parametrize("head", WITHOUT_BOXES)
def test_a_mask_only_head_does_not_train_on_boxes(make_store, train, tmp_path, head):
    code, err = train(make_store("boxes", train="box none"), "run", head=head)
    assert code == 2
    assert "no sample of data.train has a mask" in err and "oneref" in err
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_mask_only_model_does_not_train_on_boxes(make_store, train):
    code, err = train(make_store("boxes", train="box"), "run", rec=False)
    assert code == 2
    assert "model.head.settings.rec=true" in err


def test_borrowed_expressions_make_samples_without_a_target(make_store, train, answers):
    store = make_store("boxes", train="mask")
    code, err = train(store, "run", "--set", "data.augment.no_target=0.5")
    assert code == 0, err
    assert answers("run") == ["box", "mask", "existence"]


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ({"mask_focal": 0.0, "mask_dice": 0.0}, ["box", "existence"]),
        ({"existence_bce": 0.0}, ["box", "mask"]),
        ({"box_l1": 0.0, "box_giou": 0.0}, ["mask", "existence"]),
        ({"mask_dice": 0.0, "box_l1": 0.0}, ["box", "mask", "existence"]),
    ],
)
def test_outputs_with_zero_loss_weight_are_off(make_store, train, answers, weights, left):
    code, err = train(make_store("all", train="mask none"), "run", loss_weights=weights)
    assert code == 0, err
    assert answers("run") == left


def test_a_threshold_for_existence_needs_samples_to_learn_it_from(make_store, train):
    code, err = train(make_store("boxes", train="box", val="box none"), "run", "--set", "train.existence_min_t_acc=0.9")
    assert code == 2
    assert "every sample of data.train has a target" in err and "data.augment.no_target" in err


def test_a_dry_run_reports_the_outputs_that_are_off(make_store, train, tmp_path):
    code, err = train(make_store("boxes", train="box"), "run", "--dry-run")
    assert code == 0, err
    assert "the mask output learns nothing and is off" in err
