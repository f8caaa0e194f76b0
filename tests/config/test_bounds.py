"""Numbers that no run can use are refused where they are given."""

from __future__ import annotations

import pytest

from refcli.config.load import load_finetune
from refcli.errors import ConfigError


@pytest.mark.parametrize(
    "override",
    [
        "train.save_every=0",
        "train.log_every=0",
        "train.ema_decay=1.5",
        "train.ema_decay=-1",
        "optim.clip_grad_norm=0",
        "optim.lr=.nan",
        "optim.lr=.inf",
        "optim.betas=[2, 3]",
        "optim.final_lr_ratio=7",
        "optim.warmup_steps=-3",
        "optim.weight_decay=-1",
        "data.validation_samples=0",
        "data.validation_samples=-3",
        "model.tower.dim=66",
        "model.text.max_tokens=2000",
    ],
)
def test_a_number_out_of_bounds_is_refused_by_key(override):
    load_finetune("synthetic_tiny")
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        load_finetune("synthetic_tiny", [override])
    assert key.rpartition(".")[2] in caught.value.message
    assert override in caught.value.where


def test_tokens_without_a_position_are_refused_before_any_is_met():
    load_finetune("synthetic_tiny", ["model.text.max_tokens=30", "model.tower.max_text_positions=32"])
    with pytest.raises(ConfigError, match=r"32 tower\.max_text_positions are enough for 30 tokens"):
        load_finetune("synthetic_tiny", ["model.text.max_tokens=31", "model.tower.max_text_positions=32"])


def test_one_split_need_be_no_list():
    settings = load_finetune("synthetic_tiny", ["data.train=mine:train", "data.validation=mine:val"])
    assert (settings.data.train, settings.data.validation) == (("mine:train",), ("mine:val",))
