"""`refcli demo`: scenes, drawings, predictions and a contact sheet, offline."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from refcli.answers.jsonl import answer_from_json
from refcli.cli.app import run
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.example import Example
from refcli.grounder import Grounder
from refcli.recipes.demo import choose_varied
from refcli.weights import locate
from refcli.weights.directory import save_weights


@pytest.fixture(autouse=True)
def random_builtin(tmp_path, monkeypatch):
    """Stands for the packaged model."""
    torch.manual_seed(0)
    settings = ModelSettings(
        tower=TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=4096),
        head=HeadChoice(settings={"res": True, "existence": True, "mask_upsamples": 1}),
    )
    save_weights(tmp_path / "w", Grounder.from_settings(settings), settings, meta={})
    monkeypatch.setattr(locate, "BUILTIN_PATH", tmp_path / "w")
    monkeypatch.chdir(tmp_path)


def demo(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["refcli", "demo", *arguments])
    with pytest.raises(SystemExit) as caught:
        run()
    assert not caught.value.code
    return capsys.readouterr().out


def test_it_writes_scenes_drawings_predictions_and_a_sheet(monkeypatch, capsys, tmp_path):
    out = demo(monkeypatch, capsys, "--scenes", "2")
    folder = tmp_path / "refcli-demo"
    answers = [answer_from_json(json.loads(line)) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(list((folder / "overlays").iterdir())) == len(answers) > 4
    for answer in answers:
        with Image.open(folder / answer.image) as scene:
            assert scene.size == (answer.width, answer.height)
        assert answer.expression in out
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert out.splitlines()[-1].endswith(f"of {len(answers)} right")


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others(monkeypatch, capsys, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        demo(monkeypatch, capsys, "--scenes", "1", "--seed", seed, "--out", name)
    first, same, other = ((tmp_path / name / "scenes/scene-000.png").read_bytes() for name in "abc")
    assert first == same
    assert first != other


def test_questions_of_a_scene_are_of_as_many_kinds_as_possible_and_keep_their_order():
    kinds = ["attribute", "attribute", "relation", "attribute", "plural", "no_target", "relation"]
    examples = tuple(Example(str(n), "d", "s", "i", "i", 9, 9, "x", (), kind) for n, kind in enumerate(kinds))
    assert [example.id for example in choose_varied(examples)] == ["0", "2", "4", "5"]
    assert [example.id for example in choose_varied(examples[:4])] == ["0", "1", "2", "3"]
    assert [example.id for example in choose_varied(examples[:4], count=3)] == ["0", "1", "2"]
