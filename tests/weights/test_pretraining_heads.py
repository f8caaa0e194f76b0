"""The heads of a pre-training run are stored with a checksum, and another run can load them."""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.grounder import Grounder
from refcli.weights.checks import verify
from refcli.weights.directory import save_weights
from refcli.weights.layout import PRETRAINING_HEADS_FILE
from refcli.weights.transfer import load_pretraining_heads, save_pretraining_heads

MODEL = ModelSettings(
    tower=TowerSettings(image_size=32, patch_size=8, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=650),
    head=HeadChoice(settings={}),
)


def new_heads(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"mim": nn.Linear(4, 2), "mlm": nn.Linear(4, 3)})


def test_a_change_of_the_heads_is_detected(tmp_path):
    save_weights(tmp_path, Grounder.from_settings(MODEL), MODEL, meta={"objective": "mrefm"})
    save_pretraining_heads(tmp_path, new_heads(seed=0))
    assert verify(tmp_path) == []
    save_file({"mim_head.bias": torch.zeros(2)}, tmp_path / PRETRAINING_HEADS_FILE)
    assert verify(tmp_path) == [
        f"{PRETRAINING_HEADS_FILE} is not the file that was written: its sha256 differs from meta.json's"
    ]


def test_only_a_head_that_does_not_fit_keeps_its_initial_values(tmp_path):
    trained = new_heads(seed=0)
    save_pretraining_heads(tmp_path, trained)
    state = load_file(tmp_path / PRETRAINING_HEADS_FILE)
    save_file(state | {"mlm_head.bias": torch.ones(3, dtype=torch.int64)}, tmp_path / PRETRAINING_HEADS_FILE)
    heads = new_heads(seed=1)
    before = heads["mlm"].weight.clone()
    assert load_pretraining_heads(tmp_path, heads) == ("newly initialised: the pre-training heads mlm",)
    assert torch.equal(heads["mim"].weight, trained["mim"].weight)
    assert torch.equal(heads["mlm"].weight, before)
