"""The counted arithmetic is what torch counts on the real tower."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.model.beit3 import OneTower
from refcli.model.flops import Work, forward_flops, training_work

SMALL = TowerSettings(
    image_size=112, patch_size=14, dim=192, layers=7, heads=4, ffn_dim=768, vocabulary_size=60, attention="explicit"
)
BASE = TowerSettings(attention="explicit")
LARGE = TowerSettings(dim=1024, layers=24, heads=16, ffn_dim=4096, attention="explicit")


def make_batch(size: tuple[int, int], lengths: tuple[int, ...], device: str = "cpu") -> Batch:
    """Images of one size and expressions of some lengths, padded to the longest."""
    pairs, words = len(lengths), max(lengths)
    is_pad = torch.arange(words) >= torch.tensor(lengths)[:, None]
    yes = torch.ones(pairs, dtype=torch.bool)
    targets = Targets(torch.zeros(pairs, 4), torch.zeros(pairs, *size, dtype=torch.bool), yes, yes)
    ids = torch.zeros(pairs, words, dtype=torch.int64)
    return Batch(torch.zeros(pairs, 3, *size), ids, is_pad, targets, ("x",) * pairs).to(device)


def counted(settings: TowerSettings, batch: Batch, *, backward: bool) -> int:
    """FLOPs that torch counts, without doing them: the meta device has shapes only."""
    with torch.device("meta"):
        tower = OneTower(settings)
    with FlopCounterMode(display=False) as counter:
        features = tower(batch.images, batch.token_ids, batch.token_is_pad)
        if backward:
            torch.autograd.backward(features.vision.sum() + features.text.sum())
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("settings", "lengths"), [(SMALL, (9, 4)), (BASE, (64,)), (BASE, (12, 7, 3)), (LARGE, (20, 20))]
)
@pytest.mark.parametrize("backward", [False, True])
def test_the_formula_agrees_with_what_torch_counts(settings, lengths, backward):
    batch = make_batch(settings.image_size, lengths, "meta")
    rows, columns = settings.grid
    formula = len(lengths) * forward_flops(settings, num_patches=rows * columns, num_words=max(lengths))

    assert (3 if backward else 1) * formula == pytest.approx(counted(settings, batch, backward=backward), rel=0.02)


def test_the_base_tower_has_the_flops_noted_in_the_official_code():
    # A comment there gives 8,008,375,566,336 multiply-adds for 128 pairs with 64 words each.
    assert forward_flops(BASE, num_patches=576, num_words=64) / 2 == pytest.approx(8_008_375_566_336 / 128, rel=0.01)


def test_work_counts_real_words_as_tokens_and_padded_ones_as_arithmetic():
    tower = OneTower(SMALL)
    uneven, even = (training_work(tower, make_batch((112, 112), lengths)) for lengths in ((10, 3), (10, 10)))

    assert uneven.num_tokens == 2 * (1 + 64) + 13
    assert even.num_tokens == 2 * (1 + 64) + 20
    assert uneven.flops == even.flops


def test_work_depends_on_the_shape_of_the_images():
    tower = OneTower(SMALL)
    wide = training_work(tower, make_batch((56, 140), (5,)))

    assert wide.num_tokens == 1 + 4 * 10 + 5
    assert wide.flops == 3 * forward_flops(SMALL, num_patches=40, num_words=5)


def test_a_frozen_tower_runs_forward_only():
    tower, batch = OneTower(SMALL), make_batch((112, 112), (5,))
    trained = training_work(tower, batch)
    tower.requires_grad_(False)

    assert training_work(tower, batch).flops == trained.flops / 3


def test_a_second_pass_costs_arithmetic_but_no_tokens():
    tower, batch = OneTower(SMALL), make_batch((112, 112), (5,))
    once, twice = training_work(tower, batch), training_work(tower, batch, passes=2)

    assert (twice.num_tokens, twice.flops) == (once.num_tokens, 2 * once.flops)


def test_work_adds_up():
    assert Work() + Work(3, 4.0) + Work(1, 0.5) == Work(4, 4.5)
