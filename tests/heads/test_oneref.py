"""The OneRef head does boxes, masks and existence in one model, and copes with expressions without a referent."""

import pytest
import torch

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.oneref.losses import filled_boxes
from refcli.heads.oneref.upsampler import Upsampler

TOWER = TowerSettings(
    image_size=32, patch_size=8, dim=32, layers=2, heads=2, ffn_dim=64, vocabulary_size=50, drop_path=0.0, init="scaled"
)
EVERYTHING = {
    "res": True,
    "existence": True,
    "similarity_scale": 10.0,
    "mask_scale": 10.0,
    "mask_dim": 16,
    "mask_upsamples": 2,
    "loss_weights": {"contrast": 0.1},
}


def make_grounder(**settings) -> Grounder:
    torch.manual_seed(0)
    return Grounder.from_settings(ModelSettings(tower=TOWER, head=HeadChoice(settings=settings)))


def make_batch(exists=(True, False)) -> Batch:
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    there = torch.tensor(exists)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 4:20] = exists[0]
    boxes = torch.tensor([[12 / 32, 16 / 32, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    return Batch(torch.randn(2, 3, 32, 32), ids, ids == 1, Targets(boxes, masks, there | True, there), ("a", "b"))


def test_one_model_predicts_box_mask_and_existence():
    prediction = make_grounder(**EVERYTHING).eval().predict(*_inputs(make_batch()))
    assert prediction.boxes_xyxy.shape == (2, 1, 4)
    assert prediction.mask_logits.shape == (2, 1, 16, 16)
    assert prediction.existence.shape == (2,)
    assert ((prediction.boxes_xyxy >= 0) & (prediction.boxes_xyxy <= 32)).all()


def test_the_official_rec_model_has_neither_mask_nor_existence():
    prediction = make_grounder().eval().predict(*_inputs(make_batch()))
    assert prediction.mask_logits is None
    assert prediction.existence is None
    assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()


def test_every_parameter_except_the_mask_token_is_trained():
    grounder = make_grounder(**EVERYTHING).train()
    sum(grounder(make_batch(), 0).values()).backward()
    still = {n for n, p in grounder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert still == {"tower.vision_embedding.mask_token"}


@pytest.mark.parametrize("exists", [(True, False), (False, False)])
def test_losses_are_finite_without_any_referent(exists):
    grounder = make_grounder(**EVERYTHING).train()
    losses = grounder(make_batch(exists), 0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    if not any(exists):
        assert losses["box_l1"] == 0
        assert losses["mask_dice"] == 0


def test_a_sample_without_a_referent_does_not_move_the_box_loss():
    grounder = make_grounder(**EVERYTHING).eval()
    batch = make_batch()
    other = torch.tensor([[12 / 32, 16 / 32, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]])
    moved = Batch(**{**vars(batch), "targets": Targets(**{**vars(batch.targets), "boxes_cxcywh": other})})
    assert torch.equal(grounder(batch, 0)["box_l1"], grounder(moved, 0)["box_l1"])


def test_the_contrast_is_between_expressions_that_refer_to_something():
    grounder, batch = make_grounder(**EVERYTHING).eval(), make_batch((True, True))
    output = grounder.head(grounder.tower(*_inputs(batch)))
    logits = grounder.head.contrast_scale.exp() * output.vision_class @ output.language_class.T
    of_first = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(0)[0, 0]) / 2
    one = grounder.head.losses(output, make_batch((True, False)).targets)["contrast"]
    torch.testing.assert_close(one, 0.1 * of_first / 2)
    assert grounder.head.losses(output, make_batch((False, False)).targets)["contrast"] == 0


def test_the_projections_start_as_published_unless_the_tower_starts_otherwise():
    published = Grounder.from_settings(ModelSettings(tower=TOWER.model_copy(update={"dim": 128, "init": "beit3"}))).head
    ours = Grounder.from_settings(ModelSettings(tower=TOWER.model_copy(update={"dim": 128}))).head
    for name in ("vision_projection", "language_projection"):
        weight = getattr(published, name).weight
        assert weight.abs().max() <= 0.02, "a normal distribution of 0.02, cut at one deviation, has one of 0.0108"
        assert weight.std().item() == pytest.approx(0.0108, rel=0.05)
        assert getattr(ours, name).weight.abs().max() > 0.05


def test_loss_weights_scale_and_switch_off():
    once, twice = make_grounder(), make_grounder(loss_weights={"box_l1": 2.0, "similarity_dice": 0.0})
    batch = make_batch()
    torch.testing.assert_close(twice(batch, 0)["box_l1"], 2 * once(batch, 0)["box_l1"])
    assert "similarity_dice" not in twice(batch, 0)


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(ConfigError, match="similarity_scale"):
        make_grounder(similarity_scales=3.0)


def test_the_upsampler_is_a_chain_of_transposed_convolutions_with_batchnorm():
    torch.manual_seed(0)
    upsampler = Upsampler(6, 5, steps=3)
    norms = [torch.nn.BatchNorm2d(5) for _ in upsampler]
    for block, norm in zip(upsampler, norms, strict=True):
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(block.norm.weight)
        norm.load_state_dict(block.norm.state_dict())
    maps = torch.randn(2, 6, 3, 4)
    for mode in (False, True):
        upsampler.train(mode)
        expected = maps
        for number, (block, norm) in enumerate(zip(upsampler, norms, strict=True)):
            expected = torch.nn.functional.conv_transpose2d(expected, block.weight, stride=2)
            expected = norm.train(mode)(expected)
            expected = expected.relu() if number < 2 else expected
        places = upsampler(maps.flatten(2).transpose(1, 2))
        for channel in range(5):
            found = upsampler.to_maps(places[..., channel], (3, 4))
            torch.testing.assert_close(found, expected[:, channel], rtol=1e-5, atol=1e-5)


def test_a_filled_box_covers_the_rounded_pixel_range():
    pixels = filled_boxes(torch.tensor([[0.5, 0.5, 0.25, 0.5]]), (8, 16))
    expected = torch.zeros(8, 16, dtype=torch.bool)
    expected[2:6, 6:10] = True
    assert torch.equal(pixels[0], expected)


def _inputs(batch: Batch):
    return batch.images, batch.token_ids, batch.token_is_pad
