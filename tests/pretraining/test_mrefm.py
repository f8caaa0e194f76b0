"""MRefM as a whole: which terms a step has, what they train, and what they depend on."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from refcli.config.pretraining import MRefMLossWeights, MRefMSettings
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.base import Head
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.semantic_target_relation import FrozenTower, score_words
from refcli.pretraining.visual_codes import VisualCodes

TOWER = TowerSettings(
    image_size=32, patch_size=8, dim=16, layers=2, heads=2, ffn_dim=32, vocabulary_size=50, drop_path=0.0
)
GROUNDING = {"similarity_focal", "similarity_dice"}
IMAGE, TEXT = {"mim", "visual_target_relation"}, {"mlm", "semantic_target_relation"}


class BrightnessCodes(VisualCodes):
    """Four codes by mean brightness: cheap and learnable."""

    num_codes = 4

    @classmethod
    def from_settings(cls, settings, tower):
        return cls()

    def ids_of_pixels(self, pixels):
        means = pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5)).flatten(1)
        return torch.bucketize(means, torch.tensor([0.4, 0.45, 0.5]))


def make_batch(*, exists=(True, True, True, True), seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor(exists)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.4], [0.3, 0.6, 0.2, 0.2], [0.7, 0.2, 0.3, 0.3], [0.5, 0.5, 1.0, 1.0]])
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    brightness = torch.tensor([-1.0, -0.1, 0.1, 1.0]).reshape(4, 1, 1, 1)
    token_ids = torch.randint(4, 40, (4, 7), generator=generator)
    token_ids[:, 0] = 0
    is_pad = torch.zeros(4, 7, dtype=torch.bool)
    for row, length in enumerate((7, 5, 4, 3)):
        token_ids[row, length - 1], token_ids[row, length:], is_pad[row, length:] = 2, 1, True
    return Batch(
        brightness + 0.01 * torch.randn(4, 3, 32, 32, generator=generator),
        token_ids,
        is_pad,
        Targets(boxes * present[:, None], masks & present[:, None, None], torch.ones(4, dtype=torch.bool), present),
        ("a", "b", "c", "d"),
        torch.zeros(4, 7, dtype=torch.int64),
    )


def make(seed=5, **settings) -> MRefM:
    torch.manual_seed(0)
    head = HeadChoice(settings={"loss_weights": {"box_l1": 0.0, "box_giou": 0.0}})
    grounder = Grounder.from_settings(ModelSettings(tower=TOWER, head=head))
    chosen = MRefMSettings(**settings)
    teacher = FrozenTower(copy.deepcopy(grounder)) if chosen.loss_weights.semantic_target_relation else None
    mrefm = MRefM(grounder, chosen, codes=BrightnessCodes(), teacher=teacher, mask_id=40, seed=seed)
    for part in mrefm.frozen:
        part.requires_grad_(False)
    return mrefm


def test_even_steps_hide_patches_and_odd_ones_words():
    mrefm = make()
    assert set(mrefm(make_batch(), 0)) == IMAGE | GROUNDING
    assert set(mrefm(make_batch(), 1)) == TEXT | GROUNDING


def test_without_alternation_every_step_has_every_term():
    mrefm = make(alternate=False)
    both = mrefm(make_batch(), 4)
    alone = make()
    assert set(both) == IMAGE | TEXT | GROUNDING
    assert mrefm.has_static_graph and not alone.has_static_graph
    image, text = alone.referring_mim(make_batch(), 4), alone.referring_mlm(make_batch(), 4)
    assert both["mlm"].item() == pytest.approx(text["mlm"].item())
    assert both["similarity_dice"].item() == pytest.approx(
        image["similarity_dice"].item() + text["similarity_dice"].item()
    )


@pytest.mark.parametrize(
    ("weights", "even", "odd"),
    [
        ({"mim": 0}, {"visual_target_relation"} | GROUNDING, TEXT | GROUNDING),
        ({"visual_target_relation": 0, "semantic_target_relation": 0}, {"mim"} | GROUNDING, {"mlm"} | GROUNDING),
        ({"grounding": 0}, IMAGE, TEXT),
        ({"mlm": 0}, IMAGE | GROUNDING, {"semantic_target_relation"} | GROUNDING),
    ],
)
def test_a_weight_of_zero_switches_a_term_off(weights, even, odd):
    mrefm = make(loss_weights=weights)
    assert (set(mrefm(make_batch(), 0)), set(mrefm(make_batch(), 1))) == (even, odd)


def test_a_weight_is_a_factor():
    once, thrice = make()(make_batch(), 0), make(loss_weights={"mim": 3.0})(make_batch(), 0)
    assert thrice["mim"].item() == pytest.approx(3 * once["mim"].item(), rel=1e-5)
    assert thrice["visual_target_relation"].item() == pytest.approx(once["visual_target_relation"].item())


def test_the_heads_and_the_tower_are_trained_and_the_teacher_is_not():
    mrefm = make(alternate=False)
    sum(mrefm(make_batch(), 0).values()).backward()
    unused = ("grounder.head.pool_projection", "grounder.head.box_mlp")  # the box losses are off
    for name, parameter in mrefm.named_parameters():
        if name.startswith(("teacher.", "codes.")):
            assert parameter.grad is None, name
        elif not name.startswith(unused):
            assert parameter.grad is not None, name
    assert mrefm.grounder.tower.vision_embedding.mask_token.grad.norm() > 0


def test_masks_depend_on_seed_step_and_sample_only():
    def mim(seed, step, batch):
        return make(seed)(batch, step)["mim"].item()

    batch = make_batch()
    assert mim(5, 0, batch) == mim(5, 0, batch)
    assert (
        len({mim(5, 0, batch), mim(6, 0, batch), mim(5, 2, batch), mim(5, 0, replace(batch, ids=tuple("efgh")))}) == 4
    )


@pytest.mark.parametrize("step", [0, 1])
def test_a_batch_without_any_referent_gives_finite_losses(step):
    losses = make()(make_batch(exists=(False,) * 4), step)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses.get("visual_target_relation", torch.zeros(())) == 0
    assert losses.get("semantic_target_relation", torch.zeros(())) == 0


def test_losses_fall_in_training():
    mrefm = make(alternate=False)
    optimizer = torch.optim.AdamW([p for p in mrefm.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for _ in range(60):
        loss = sum(mrefm(make_batch(), 0).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.6 * totals[0]
    assert mrefm.metrics()["mim_accuracy"] > 0.5 and set(mrefm.metrics()) == {"mim_accuracy", "mlm_accuracy"}


def test_the_teacher_is_refreshed_only_as_set():
    for every, changes in ((None, False), (2, True)):
        mrefm = make(semantic_targets={"refresh_every": every}).train()
        with torch.no_grad():
            mrefm.grounder.head.vision_projection.weight.add_(1.0)
        before = mrefm.teacher.vision_projection.weight.clone()
        mrefm.begin_step(1)
        mrefm(make_batch(), 2)
        assert torch.equal(mrefm.teacher.vision_projection.weight, before)
        mrefm.begin_step(2)
        assert torch.equal(mrefm.teacher.vision_projection.weight, before) is not changes


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_weights": {"mim": 0, "visual_target_relation": 0, "grounding": 0}},
        {"loss_weights": {"mlm": 0, "semantic_target_relation": 0, "grounding": 0}},
        {"alternate": False, "loss_weights": dict.fromkeys(MRefMLossWeights.model_fields, 0)},
        {"semantic_targets": {"weights": "builtin", "refresh_every": 500}},
        {"semantic_targets": {"region_weight": 0, "image_weight": 0}},
    ],
)
def test_settings_that_leave_a_step_without_losses_are_refused(settings):
    with pytest.raises(ValidationError, match=r"no loss|replaces it|both 0"):
        MRefMSettings(**settings)


def test_without_alternation_one_kind_of_hiding_is_enough():
    weights = {"mim": 0, "visual_target_relation": 0, "grounding": 0}
    assert set(make(alternate=False, loss_weights=weights)(make_batch(), 0)) == TEXT


def test_word_scores_are_distributions_over_the_words():
    mrefm, batch = make(), make_batch()
    counts = ~batch.token_is_pad & (batch.token_ids > 2)
    scores = score_words(mrefm.teacher, batch, counts, mrefm.settings.semantic_targets)
    assert torch.allclose(scores.sum(1), torch.ones(4), atol=1e-5)
    assert (scores[~counts] == 0).all() and not scores.requires_grad


def test_another_head_is_refused():
    class Other(Head):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, features): ...
        def losses(self, output, targets): ...
        def predict(self, output): ...

    grounder = Grounder(make().grounder.tower, Other())
    settings = MRefMSettings(loss_weights={"semantic_target_relation": 0.0})
    with pytest.raises(ConfigError, match="oneref"):
        MRefM(grounder, settings, codes=BrightnessCodes(), teacher=None, mask_id=40, seed=0)
