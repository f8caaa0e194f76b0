"""The work of a step is what torch counts on the whole model, whatever the head."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.grounder import Grounder

TOWER = TowerSettings(
    image_size=96, patch_size=16, dim=64, layers=4, heads=4, ffn_dim=128, vocabulary_size=60, attention="explicit"
)
CHANNELS = [64, 64, 64, 64]
HEADS = [
    ("oneref", {"res": True, "existence": True}),
    ("shared_ris", {"dim": 64, "heads": 4, "existence": True}),
    pytest.param("cgformer", {"dim": 64, "pyramid_channels": CHANNELS, "existence": True}, marks=pytest.mark.slow),
    ("cgformer", {"dim": 64, "pyramid_channels": CHANNELS, "lite": True}),
    pytest.param(
        "rela",
        {"dim": 64, "regions": 4, "decoder_layers": 2, "pixel_layers": 1, "pyramid_channels": CHANNELS},
        marks=pytest.mark.slow,
    ),
]


def make_batch(words: int) -> Batch:
    with torch.device("meta"):
        ids = torch.zeros(3, words, dtype=torch.int64)
        yes, masks = torch.ones(3, dtype=torch.bool), torch.zeros(3, 96, 96, dtype=torch.bool)
        return Batch(torch.zeros(3, 3, 96, 96), ids, ids == 1, Targets(torch.zeros(3, 4), masks, yes, yes), ("x",) * 3)


@pytest.mark.parametrize(("name", "settings"), HEADS)
def test_the_flops_of_a_head_are_those_that_torch_counts(name, settings):
    model = ModelSettings(tower=TOWER, head=HeadChoice(name=name, settings=settings))
    with torch.device("meta"):
        grounder = Grounder.from_settings(model).eval()
    for words in (5, 31):
        batch = make_batch(words)
        features = grounder.features(batch.images, batch.token_ids, batch.token_is_pad)
        with FlopCounterMode(display=False) as counter:
            grounder.head.requires_grad_(False)(features)
        grounder.head.requires_grad_(True)
        assert grounder.head_work(batch).flops == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


def test_a_frozen_head_has_no_backward_pass():
    grounder = Grounder.from_settings(ModelSettings(tower=TOWER))
    batch = make_batch(9)
    whole = grounder.head_work(batch).flops
    grounder.head.requires_grad_(False)
    assert grounder.head_work(batch).flops == pytest.approx(whole / 3)


def test_counting_draws_no_random_numbers():
    grounder = Grounder.from_settings(ModelSettings(tower=TOWER))
    before = torch.get_rng_state()
    grounder.head_work(make_batch(9))
    assert torch.equal(before, torch.get_rng_state())
