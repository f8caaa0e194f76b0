"""A model and its own prediction file have the same metrics, down to the last digit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.data.store.read import Store
from refcli.grounder import Grounder
from refcli.weights.directory import save_weights

SPLIT = "synthetic:test"
TOWER = TowerSettings(
    image_size=32, patch_size=8, dim=32, layers=1, heads=2, ffn_dim=32, vocabulary_size=4096, init="scaled"
)
PYRAMID = [8, 8, 8, 16]
RELA = {
    "dim": 16, "heads": 2, "regions": 2, "decoder_layers": 1, "decoder_ffn_dim": 16, "pixel_layers": 0,
    "pyramid_channels": PYRAMID,
}  # fmt: skip
HEADS = {
    "box, mask and existence": ("oneref", {"res": True, "existence": True, "mask_upsamples": 2}),
    "box and mask": ("oneref", {"res": True, "mask_upsamples": 2}),
    "box and existence": ("oneref", {"res": False, "existence": True}),
    "mask of regions and existence": ("rela", RELA),
    "mask": ("shared_ris", {"dim": 16, "heads": 2}),
    "mask and existence": (
        "cgformer",
        {"dim": 16, "pyramid_channels": PYRAMID, "lite": True, "existence": True},
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_synthetic(folder, size=4, splits=["test"])
    return folder


@pytest.fixture(scope="module")
def requests(store) -> Path:
    split = Store(store).split(SPLIT)
    path = store / "synthetic" / "requests.jsonl"
    examples = [split[index] for index in range(len(split))]
    lines = [json.dumps({"id": e.id, "image": e.image, "expression": e.expression}) for e in examples]
    path.write_text("\n".join(lines))
    return path


def save(folder: Path, name: str, settings: dict[str, object]) -> Path:
    torch.manual_seed(3)
    model = ModelSettings(tower=TOWER, head=HeadChoice(name=name, settings=settings))
    save_weights(folder, Grounder.from_settings(model), model, meta={})
    return folder


@pytest.fixture
def weights(tmp_path, refcli, requests):
    """Random weights of a head whose existence output, if any, rejects about half of the expressions."""

    def make(name: str, settings: dict[str, object]) -> Path:
        folder = save(tmp_path / "random", name, settings)
        scores = [one["no_target_score"] for one in lines_of(refcli("predict", requests, "-w", folder)[1])]
        if scores[0] is None:
            return folder
        middle = 1 - float(np.median(scores))
        return save(tmp_path / "halved", name, settings | {"existence_threshold": middle})

    return make


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def measured(refcli, store: Path, *system: object) -> dict:
    """The document without names and times, which always differ."""
    code, out, err = refcli("evaluate", "--data", store, "--split", SPLIT, "--convention", "all", "--json", *system)
    assert code == 0, err
    document = json.loads(out)
    for name in ("weights", "precision"):
        del document[name]
    for split in document["splits"].values():
        del split["seconds"]
    return document


@pytest.mark.parametrize("head", HEADS)
def test_a_model_and_its_prediction_file_have_the_same_metrics(refcli, store, requests, weights, tmp_path, head):
    folder = weights(*HEADS[head])
    code, out, _ = refcli("predict", requests, "-w", folder)
    assert code == 0
    lines = lines_of(out)
    if "existence" in head:
        assert 0 < sum(line["no_target"] for line in lines) < len(lines)
    (tmp_path / "own.jsonl").write_text(out)

    own, file = (
        measured(refcli, store, *system)
        for system in (("--weights", folder), ("--predictions", tmp_path / "own.jsonl"))
    )

    assert file == own
    assert len(own["metrics"]) > 20


def test_a_model_is_not_better_or_worse_than_its_own_file(refcli, store, requests, weights, tmp_path):
    folder = weights(*HEADS["box, mask and existence"])
    (tmp_path / "own.jsonl").write_text(refcli("predict", requests, "-w", folder)[1])
    asked = ("evaluate", "--data", store, "--split", SPLIT)
    refcli(*asked, "--weights", folder, "--out", tmp_path / "run")
    code, out, _ = refcli(*asked, "--predictions", tmp_path / "own.jsonl", "--compare", tmp_path / "run", "--json")
    assert code == 0
    for name, one in json.loads(out)["comparison"][SPLIT]["metrics"].items():
        assert one["this"] == one["other"], name
        assert one["p_value"] == 1, name


def test_a_no_target_line_keeps_what_the_model_proposed(refcli, requests, weights):
    folder = weights(*HEADS["box, mask and existence"])
    lines = lines_of(refcli("predict", requests, "-w", folder)[1])
    for line in lines:
        if line["no_target"]:
            assert line["targets"] == []
            assert line["no_target_source"] == "existence"
            assert list(line["candidates"][0])[:4] == ["box", "score", "mask", "box_source"]
        else:
            assert "candidates" not in line
            assert "no_target_source" not in line


def test_a_minimum_score_changes_the_answers_and_not_the_metrics_before_the_gate(
    refcli, store, requests, weights, tmp_path
):
    folder = weights(*HEADS["box and mask"])
    scores = [one["targets"][0]["score"] for one in lines_of(refcli("predict", requests, "-w", folder)[1])]
    _, out, _ = refcli("predict", requests, "-w", folder, "--min-score", np.median(scores))
    lines = lines_of(out)
    assert {line.get("no_target_source") for line in lines} == {None, "min_score"}
    (tmp_path / "strict.jsonl").write_text(out)
    own, strict = (
        measured(refcli, store, *system)["metrics"]
        for system in (("--weights", folder), ("--predictions", tmp_path / "strict.jsonl"))
    )
    before_the_gate = ("acc50", "box_miou", "mask_miou", "mask_oiou", "pr70", "recall5_any")
    for name in before_the_gate:
        assert strict[f"synthetic/test/{name}"] == own[f"synthetic/test/{name}"]
    assert strict["synthetic/test/t_acc"] < own["synthetic/test/t_acc"] == 1
