"""Shared paths, and one thread for everything: the models of tests are too small to be divided."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; also for the programs that tests start
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Golden values that the tests compare with."""
    return FIXTURES


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights directory of a tiny model that answers anything with a box and a mask, quickly."""
    import torch

    from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
    from refcli.grounder import Grounder
    from refcli.weights.directory import save_weights

    torch.manual_seed(0)
    settings = ModelSettings(
        tower=TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=4096),
        head=HeadChoice(settings={"res": True, "mask_upsamples": 1}),
    )
    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, Grounder.from_settings(settings), settings, meta={})
    return str(folder)
