"""Shared-RIS: the paper's sizes and costs, its equations against naive ones, and its settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from refcli.config.load import load_finetune
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Targets
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.shared.existence import ExistenceOutput
from refcli.heads.shared.masks import predict_from_mask
from refcli.heads.shared_ris.fpn import ResidualSelfAttention, SharedFPN
from refcli.heads.shared_ris.head import SharedRISHead, SharedRISOutput, SharedRISSettings
from refcli.heads.shared_ris.mask_decoder import SharedMaskDecoder
from refcli.model.beit3 import Features
from refcli.model.multiway import Tokens

BASE = TowerSettings(image_size=480, attention="explicit")
LARGE = TowerSettings(image_size=480, dim=1024, layers=24, heads=16, ffn_dim=4096, attention="explicit")
TINY = TowerSettings(
    image_size=32, patch_size=8, dim=32, layers=4, heads=2, ffn_dim=64, vocabulary_size=50, drop_path=0.0, init="scaled"
)
GRID, WORDS = (30, 30), 22
"""480 pixels; the length of text that the paper's costs fit."""


def on_meta(tower: TowerSettings, **settings) -> Grounder:
    with torch.device("meta"):
        return Grounder.from_settings(ModelSettings(tower=tower, head=HeadChoice(name="shared_ris", settings=settings)))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny_head(**settings) -> SharedRISHead:
    torch.manual_seed(0)
    return SharedRISHead(SharedRISSettings(dim=16, heads=2, **settings), TINY)


def tiny_features(batch=2, words=5) -> Features:
    torch.manual_seed(1)
    rows = {layer: Tokens(torch.randn(batch, 17, 32), torch.randn(batch, words, 32)) for layer in range(1, 5)}
    pad = torch.zeros(batch, words, dtype=torch.bool)
    pad[-1, 3:] = True
    return Features(torch.randn(batch, 17, 32), torch.randn(batch, words, 32), pad, (4, 4), (32, 32), rows)


@pytest.mark.parametrize(
    ("tower", "multiway", "total"),
    [
        (BASE, False, 237_019_648),
        (BASE, True, 238_594_560),  # printed: 239M
        (LARGE, False, 689_439_232),
        (LARGE, True, 691_538_432),
    ],
    ids=["base", "base multiway", "large", "large multiway"],
)
def test_the_whole_model_has_the_papers_number_of_parameters(tower, multiway, total):
    assert count(on_meta(tower, multiway_proj=multiway)) == total


@pytest.mark.parametrize(
    ("stages", "literal", "multiway"),
    [([6, 12], 3_415_552, 4_203_008), ([4, 8, 12], 5_123_072, 6_304_256), ([3, 6, 9, 12], 6_830_592, 8_405_504)],
)
def test_the_fpn_of_two_three_and_four_stages_has_4_6_and_8_million_parameters(stages, literal, multiway):
    with torch.device("meta"):
        sizes = [
            count(SharedRISHead(SharedRISSettings(stages=stages, multiway_proj=is_multiway), BASE).fpn)
            for is_multiway in (False, True)
        ]
    assert sizes == [literal, multiway]


@pytest.mark.parametrize(("num_stages", "giga_macs"), [(2, 4.89), (3, 7.34), (4, 9.78)])
def test_the_fpn_has_the_flops_of_its_closed_form(num_stages, giga_macs):
    with torch.device("meta"):
        fpn = SharedFPN(768, 512, num_stages=num_stages, heads=8, multiway=True, attention_implementation="explicit")
        rows = Tokens(torch.empty(1, 901, 768), torch.empty(1, WORDS, 768))
    with FlopCounterMode(display=False) as counter:
        fpn([rows] * num_stages, key_is_real=None)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)


@pytest.mark.parametrize(
    ("num_layers", "num_parameters", "giga_macs"),
    [(0, 5_508_608, 46.25), (1, 8_660_992, 50.03), (2, 11_813_376, 53.80), (3, 14_965_760, 57.58)],
)
def test_the_decoder_has_the_papers_size_and_cost(num_layers, num_parameters, giga_macs):
    with torch.device("meta"):
        decoder = SharedMaskDecoder(512, num_layers=num_layers, heads=8, attention_implementation="explicit")
        tokens = torch.empty(1, 901 + WORDS, 512)
    with FlopCounterMode(display=False) as counter:
        mask_logits = decoder(tokens, GRID, key_is_real=None)
    assert count(decoder) == num_parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)
    assert mask_logits.shape == (1, 120, 120)


@pytest.mark.parametrize(("tower", "giga_macs"), [(BASE, 154.4), (LARGE, 381.6)], ids=["base", "large"])
def test_the_whole_model_has_the_flops_printed_in_the_paper(tower, giga_macs):
    grounder = on_meta(tower).eval()
    with torch.device("meta"):
        inputs = torch.empty(1, 3, 480, 480), torch.zeros(1, WORDS, dtype=torch.long), torch.zeros(1, WORDS) > 0
    with FlopCounterMode(display=False) as counter:
        grounder.predict(*inputs)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)


@pytest.mark.parametrize("how", ["sdpa", "explicit"])
def test_the_attention_equals_torchs_own_without_padded_keys(how):
    torch.manual_seed(0)
    ours, theirs = (
        ResidualSelfAttention(12, 3, attention_implementation=how),
        nn.MultiheadAttention(12, 3, batch_first=True),
    )
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.out.weight.data, ours.out.bias.data
    x, is_pad = torch.randn(2, 7, 12), torch.zeros(2, 7, dtype=torch.bool)
    is_pad[1, 4:] = True
    normed = F.layer_norm(x, (12,), ours.norm.weight, ours.norm.bias)
    expected = x + theirs(normed, normed, normed, key_padding_mask=is_pad)[0]
    torch.testing.assert_close(ours(x, ~is_pad[:, None, None]), expected, rtol=1e-5, atol=1e-5)


def test_multiway_projections_send_words_and_patches_through_experts_of_their_own():
    torch.manual_seed(0)
    fpn = SharedFPN(8, 4, num_stages=1, heads=2, multiway=True, attention_implementation="explicit")
    rows = Tokens(torch.randn(1, 5, 8), torch.randn(1, 3, 8))
    experts = fpn.projections[0].linear
    expected = torch.cat([experts.vision(rows.vision), experts.language(rows.text)], 1)
    expected = fpn.merge(fpn.attentions[0](expected, None))
    torch.testing.assert_close(fpn([rows], None), expected)


def test_the_mask_logit_of_a_place_is_its_product_with_the_expression():
    torch.manual_seed(0)
    decoder = SharedMaskDecoder(8, num_layers=1, heads=2, attention_implementation="explicit").eval()
    tokens = torch.randn(2, 1 + 6 + 3, 8)
    mask_logits = decoder(tokens, (2, 3), None)
    decoded = decoder.layers[0](tokens, None)
    assert mask_logits.shape == (2, 8, 12)
    for sample in range(2):
        image = torch.stack([decoded[sample, 1 + 3 * y : 4 + 3 * y].T for y in range(2)], 1)
        maps, query = decoder.upsampler(image[None])[0], decoder.query(decoded[sample, 7])
        for y, x in ((0, 0), (3, 7), (7, 11)):
            torch.testing.assert_close(mask_logits[sample, y, x], maps[:, y, x] @ query)


def test_without_an_fpn_the_head_reads_the_towers_last_rows_alone():
    head, features = tiny_head(fpn="none", stages=(3, 99)).eval(), tiny_features()
    assert head.hidden_layers == ()
    features.hidden.clear()
    assert head(features).mask_logits.shape == (2, 16, 16)


@pytest.mark.parametrize(
    ("layers", "stages"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (7, (2, 4, 6, 7)), (2, (1, 2)), (1, (1,))]
)
def test_the_stages_are_the_quarters_of_the_tower(layers, stages):
    head = SharedRISHead(SharedRISSettings(dim=16, heads=2), TINY.model_copy(update={"layers": layers}))
    assert head.stages == head.hidden_layers == stages


def test_the_normed_top_layer_takes_the_place_of_the_raw_one():
    raw, normed = tiny_head(stages=(2, 4)).eval(), tiny_head(stages=(2, 4), norm_last=True).eval()
    features = tiny_features()
    assert (raw.hidden_layers, normed.hidden_layers) == ((2, 4), (2,))
    same_top = Features(
        features.vision, features.text, features.token_is_pad, (4, 4), (32, 32),
        {2: features.hidden[2], 4: Tokens(features.vision, features.text)},
    )  # fmt: skip
    assert torch.equal(normed(features).mask_logits, raw(same_top).mask_logits)
    assert not torch.equal(raw(features).mask_logits, raw(same_top).mask_logits)


@pytest.mark.parametrize(("norm_last", "still"), [(False, {"tower.encoder.norm"}), (True, set())])
def test_only_a_final_norm_that_is_unused_stays_untrained(norm_last, still):
    torch.manual_seed(0)
    settings = {"dim": 16, "heads": 2, "norm_last": norm_last}
    grounder = Grounder.from_settings(ModelSettings(tower=TINY, head=HeadChoice(name="shared_ris", settings=settings)))
    ids = torch.tensor([[0, 5, 6, 2]])
    features = grounder.tower(torch.randn(1, 3, 32, 32), ids, ids == 1, keep_hidden=grounder.head.hidden_layers)
    grounder.head(features).mask_logits.square().sum().backward()
    unused = {".".join(n.split(".")[:3]) for n, p in grounder.named_parameters() if p.grad is None}
    assert unused - {"tower.vision_embedding.mask_token"} == still


@pytest.mark.parametrize("settings", [{"stages": [3, 5]}, {"stages": [0, 4]}])
def test_a_stage_that_the_tower_does_not_have_is_refused(settings):
    with pytest.raises(ConfigError, match="layers 1 to 4"):
        tiny_head(**settings)


@pytest.mark.parametrize("settings", [{"stages": [4, 2]}, {"stages": []}, {"dim": 10, "heads": 4}])
def test_settings_that_make_no_head_are_refused(settings):
    with pytest.raises(ValueError, match=r"stages|multiple"):
        SharedRISSettings(**settings)


def rectangle(exists=(True, True, False), known=(True, False, True)) -> Targets:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:2, 2:6, 1:5] = True
    return Targets(torch.rand(3, 4), masks, torch.tensor(known), torch.tensor(exists))


@pytest.mark.parametrize("size", ["image", "prediction"])
def test_the_losses_are_twice_cross_entropy_and_half_of_dice_over_known_masks(size):
    torch.manual_seed(0)
    targets, logits = rectangle(), torch.randn(3, 4, 4)
    losses = tiny_head(loss_size=size).losses(SharedRISOutput(logits, None), targets)
    if size == "image":
        compared = F.interpolate(logits[:, None], (8, 8), mode="bilinear")[:, 0]
        truth = targets.masks.float()
    else:
        compared, truth = logits, targets.masks[:, ::2, ::2].float()
    each = [F.binary_cross_entropy(compared[i].sigmoid(), truth[i]) for i in (0, 2)]
    p, t = compared[0].sigmoid(), truth[0]
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    torch.testing.assert_close(losses["mask_bce"], 2.0 * sum(each) / 2)
    torch.testing.assert_close(losses["mask_dice"], 0.5 * dice)


def test_a_weight_of_zero_switches_a_loss_off():
    head = tiny_head(existence=True, loss_weights={"mask_dice": 0.0})
    losses = head.losses(head(tiny_features(3)), rectangle())
    assert losses.keys() == {"mask_bce", "existence_bce"}


def test_the_mask_covers_what_is_above_the_threshold_and_the_score_is_its_mean_probability():
    probability = torch.tensor([[[0.3, 0.4], [0.9, 0.34]], [[0.1, 0.2], [0.3, 0.05]]])
    how = {"mask_threshold": 0.35, "existence_threshold": 0.5}
    for threshold_first in (False, True):
        prediction = predict_from_mask(probability.logit(), None, threshold_first=threshold_first, **how)
        assert torch.equal(prediction.mask_logits[:, 0] > 0, probability > 0.35)
        torch.testing.assert_close(prediction.scores, torch.tensor([[0.65], [0.0]]))
        assert prediction.boxes_xyxy is None
    assert set(prediction.mask_logits.unique().tolist()) == {-1.0, 1.0}
    exact = predict_from_mask(probability.logit(), torch.tensor([0.0, 2.0]), threshold_first=False, **how)
    torch.testing.assert_close(exact.scores[:, 0], exact.existence)
    torch.testing.assert_close(exact.mask_logits[0, 0, 0, 0].item(), math.log(0.3 / 0.7) - math.log(0.35 / 0.65))


def test_existence_reads_the_patches_inside_the_mask_and_does_not_train_the_mask():
    torch.manual_seed(0)
    output, text, patches = ExistenceOutput(8), torch.randn(1, 8), torch.randn(1, 6, 8)
    mask_logits = torch.full((1, 4, 6), -50.0)
    mask_logits[0, 2:4, 2:4] = 50.0
    mask_logits.requires_grad_()
    logits = output(text, patches, (2, 3), mask_logits)
    torch.testing.assert_close(logits, output.read_out(torch.cat([text, patches[:, 4]], -1))[:, 0])
    nowhere = output(text, patches, (2, 3), torch.full((1, 4, 6), -1e4))
    assert torch.isfinite(nowhere).all()
    logits.sum().backward()
    assert mask_logits.grad is None


@pytest.mark.parametrize("name", ["refcoco", "refcocoplus", "refcocog", "grefcoco"])
def test_the_presets_build_the_papers_model(name):
    settings = load_finetune(f"shared_ris_{name}")
    with torch.device("meta"):
        grounder = Grounder.from_settings(settings.model)
    existence = 2 * 2 * 768 + 2 * 768 + 1 if name == "grefcoco" else 0
    assert count(grounder) == 238_594_560 + existence
    assert settings.train.batch_size * 8 == 112
