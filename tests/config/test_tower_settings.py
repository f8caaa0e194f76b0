"""Sizes of the tower are counts of something."""

from __future__ import annotations

import pytest

from refcli.config.load import load_finetune, load_pretrain
from refcli.errors import ConfigError

SIZES = ("patch_size", "dim", "layers", "heads", "ffn_dim", "vocabulary_size", "max_text_positions", "image_size")


@pytest.mark.parametrize("load", [load_finetune, load_pretrain])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", ["0", "-4"])
def test_a_size_below_one_is_a_config_error_that_names_it(load, name, value):
    with pytest.raises(ConfigError, match=rf"model\.tower\.{name}[\s\S]*greater than 0"):
        load("synthetic_tiny", [f"model.tower.{name}={value}"])


def test_each_side_of_the_frame_must_be_positive():
    with pytest.raises(ConfigError, match=r"model\.tower\.image_size[\s\S]*greater than 0"):
        load_finetune("synthetic_tiny", ["model.tower.image_size=[64, 0]"])
