"""`refcli evaluate`: a table or a document on stdout, gates as exit codes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.grounder import Grounder
from refcli.weights.directory import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    settings = ModelSettings(
        tower=TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=4096),
        head=HeadChoice(settings={"res": True, "existence": True, "mask_upsamples": 1}),
    )
    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, Grounder.from_settings(settings), settings, meta={})
    return str(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_synthetic(folder, size=6, splits=["test", "val"])
    return folder


def test_the_table_has_a_row_per_kind_and_the_overall(refcli, store, weights):
    code, out, err = refcli("evaluate", "--data", store, "--split", "synthetic:test", "-w", weights)
    assert code == 0
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert first[0] == "synthetic:test"
    assert first[1] == "kind"
    assert "attribute" in first
    assert "overall" in first
    assert err == ""


def test_the_document_counts_every_sample_of_every_split_and_equals_summary_json(refcli, store, weights, tmp_path):
    code, out, _ = refcli(
        "evaluate", "--data", store, "--split", "synthetic:test", "--split", "synthetic:val", "-w", weights, "--json",
        "--out", tmp_path / "o",
    )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "o/summary.json").read_text()) == document
    manifest = json.loads((store / "manifest.json").read_text())["datasets"]["synthetic"]["splits"]
    for split in ("test", "val"):
        part = document["splits"][f"synthetic:{split}"]
        assert part["overall"]["count"] == manifest[split]["examples"]
        assert sum(kind["count"] for kind in part["kinds"].values()) == part["overall"]["count"]
    assert 0 <= document["metrics"]["synthetic/test/acc50"] <= 1


def test_the_weights_of_two_runs_are_called_by_their_runs(refcli, store, weights, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(weights, tmp_path / name / "weights")
    both = [part for name in ("first", "second") for part in ("-w", str(tmp_path / name / "weights"))]
    _, out, _ = refcli("evaluate", "--data", store, "--split", "synthetic:val", *both, "--out", tmp_path / "out")
    assert [line.split()[1] for line in out.splitlines() if line][1:] == ["first/weights", "second/weights"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-first-weights", "2-second-weights"]


def test_a_limit_takes_the_first_samples(refcli, store, weights):
    _, out, _ = refcli(
        "evaluate", "--data", store, "--split", "synthetic:test", "-w", weights, "--json", "--limit", "5"
    )
    assert json.loads(out)["splits"]["synthetic:test"]["overall"]["count"] == 5


def test_a_gate_that_is_not_met_ends_with_code_4_after_the_metrics(refcli, store, weights):
    arguments = ("evaluate", "--data", store, "--split", "synthetic:test", "-w", weights, "--json")
    code, out, err = refcli(*arguments, "--fail-under", "acc50=1")
    assert code == 4
    assert "wanted 1" in err
    assert json.loads(out)["splits"]
    assert refcli(*arguments, "--fail-under", "acc50=0")[0] == 0


def test_unreadable_images_are_listed_and_left_out_with_code_3(refcli, weights, tmp_path):
    write_synthetic(tmp_path, size=3, splits=["test"])
    image = sorted((tmp_path / "synthetic").rglob("*.jpg"))[0]
    image.write_bytes(b"broken")
    code, out, err = refcli("evaluate", "--data", tmp_path, "--split", "synthetic:test", "-w", weights, "--json")
    part = json.loads(out)["splits"]["synthetic:test"]
    assert code == 3
    assert part["failures"]
    assert f"{len(part['failures'])} of {part['overall']['count'] + len(part['failures'])} samples" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "synthetic:tset"], 5, "synthetic:test"),
        (["--split", "synthetic:test", "--split", "synthetic:test"], 2, "once"),
        (["--split", "synthetic:test", "--fail-under", "acc=1"], 2, "no metric called 'acc'"),
        ([], 2, "--split"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(refcli, store, weights, arguments, code, message):
    actual, out, err = refcli("evaluate", "--data", store, "-w", weights, *arguments)
    assert actual == code
    assert message in err
    assert out == ""
