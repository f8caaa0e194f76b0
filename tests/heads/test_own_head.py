"""A head of another package: trained by settings, stored, and loaded again only where its module is trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import refcli
from refcli.cli.app import run
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.table import head_class
from refcli.weights.checks import read_info

OWN_HEAD = '''
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from refcli.config import Settings, TowerSettings
from refcli.contracts import Prediction, Targets
from refcli.geometry import cxcywh_to_xyxy
from refcli.heads import Head, Learned
from refcli.losses import box_giou, box_l1
from refcli.model import Features


class LossWeights(Settings):
    box_l1: float = 5.0
    box_giou: float = 2.0


class CentreSettings(Settings):
    hidden_dim: int = 64
    loss_weights: LossWeights = LossWeights()


class CentreOutput(NamedTuple):
    boxes_cxcywh: Tensor
    image_size: tuple[int, int]


class CentreHead(Head[CentreOutput]):
    """A box from the expression's vector and the mean of the patches."""

    Config = CentreSettings
    config: CentreSettings
    OUTPUTS: ClassVar = {"box": Learned(None, ("box_l1", "box_giou"))}

    def __init__(self, config: CentreSettings, tower: TowerSettings) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.box = nn.Sequential(nn.Linear(2 * tower.dim, dim), nn.ReLU(), nn.Linear(dim, 4))

    def forward(self, features: Features) -> CentreOutput:
        pooled = torch.cat([features.text[:, 0], features.patches.mean(1)], -1)
        return CentreOutput(self.box(pooled).float().sigmoid(), features.image_size)

    def losses(self, output: CentreOutput, targets: Targets) -> dict[str, Tensor]:
        weights, boxes = self.config.loss_weights, (output.boxes_cxcywh, targets.boxes_cxcywh, targets.exists)
        return {"box_l1": weights.box_l1 * box_l1(*boxes), "box_giou": weights.box_giou * box_giou(*boxes)}

    def predict(self, output: CentreOutput) -> Prediction:
        height, width = output.image_size
        boxes = cxcywh_to_xyxy(output.boxes_cxcywh) * output.boxes_cxcywh.new_tensor([width, height, width, height])
        return Prediction(boxes[:, None], torch.ones(len(boxes), 1), mask_logits=None, existence=None)
'''
NAME = "own_head_of_a_test:CentreHead"


@pytest.fixture(autouse=True)
def module_folder(tmp_path, monkeypatch):
    """The module lies on the path and is not imported."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_head_of_a_test.py").write_text(OWN_HEAD, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("REFCLI_HEADS", raising=False)
    yield folder
    sys.modules.pop("own_head_of_a_test", None)


PRESET = f"""
model:
  tower: {{image_size: 32, dim: 16, layers: 1, heads: 2, ffn_dim: 16, vocabulary_size: 4096, init: scaled}}
  head: {{name: "{NAME}", settings: {{hidden_dim: 8}}}}
data: {{train: "synthetic:train", validation: "synthetic:val", workers: 0}}
train: {{steps: 2, batch_size: 2, device: cpu}}
"""


def train(folder: Path) -> Path:
    (folder / "preset.yaml").write_text(PRESET)
    store = refcli.prepare("synthetic", out=folder / "store", settings={"size": 4}, splits=["train", "val"]).path
    return refcli.finetune(folder / "preset.yaml", store=store, out=folder / "run")


def forget() -> None:
    del sys.modules["own_head_of_a_test"]


def test_the_example_is_forty_lines():
    head = OWN_HEAD[OWN_HEAD.index("class LossWeights") :]

    assert len([line for line in head.splitlines() if line.strip()]) <= 40


def test_settings_train_it_and_its_weights_answer_again(tmp_path):
    weights = train(tmp_path)

    answers = refcli.Predictor(weights, device="cpu").predict(np.zeros((40, 60, 3), np.uint8), "the red circle")

    assert len(answers[0].targets) == 1
    assert answers[0].error is None
    assert read_info(weights).tasks == ("box",)


def test_weights_do_not_import_a_module_that_only_they_name(tmp_path):
    weights = train(tmp_path)
    forget()

    with pytest.raises(ConfigError, match="is not part of refcli, and its module is not imported") as caught:
        refcli.load_weights(str(weights))

    assert "own_head_of_a_test" not in sys.modules
    assert "REFCLI_HEADS=own_head_of_a_test" in str(caught.value.hint)


def test_weights_load_where_the_program_imported_the_module(tmp_path):
    weights = train(tmp_path)
    forget()
    __import__("own_head_of_a_test")

    assert type(refcli.load_weights(str(weights)).grounder.head).__name__ == "CentreHead"


def test_a_command_uses_such_weights_where_the_environment_names_the_module(tmp_path, monkeypatch, capsys):
    weights = train(tmp_path)
    forget()
    command = ["refcli", "evaluate", "--weights", str(weights), "--data", str(tmp_path / "store"), "--split"]
    monkeypatch.setattr(sys, "argv", [*command, "synthetic:val", "--device", "cpu"])

    with pytest.raises(SystemExit) as refused:
        run()
    monkeypatch.setenv("REFCLI_HEADS", "another, own_head_of_a_test")
    with pytest.raises(SystemExit) as done:
        run()

    assert refused.value.code == 2
    assert not done.value.code


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refcli.errors:RefcliError", "is not a subclass of refcli.Head"),
        ("refcli.errors:Nothing", "has no head 'Nothing'"),
        ("os:system", "is not a subclass of refcli.Head"),
        ("os.path:../x", "is not the name of a head"),
        ("not imported:X", "is not the name of a head"),
        ("no_such_module_anywhere:X", "its module is not imported"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        head_class(name)


def test_a_named_module_that_fails_to_import_is_reported(module_folder):
    (module_folder / "broken_own_head.py").write_text("1 / 0")

    with pytest.raises(ConfigError, match="broken_own_head of the head cannot be imported: ZeroDivisionError"):
        refcli.load_finetune("synthetic_tiny", ["model.head.name=broken_own_head:X"])


def test_settings_of_an_own_head_are_checked_by_its_class():
    tower = TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=64)
    model = ModelSettings(tower=tower, head=HeadChoice(name=NAME, settings={"hidden": 8}))
    __import__("own_head_of_a_test")

    with pytest.raises(ConfigError, match="there is no setting called 'hidden'") as caught:
        Grounder.from_settings(model)

    assert "did you mean 'hidden_dim'" in str(caught.value.hint)
