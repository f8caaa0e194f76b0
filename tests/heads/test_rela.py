"""ReLA: the published code's numbers and sizes, its parts against naive ones, and what is repaired."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from refcli.config.load import load_finetune
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Targets
from refcli.grounder import Grounder
from refcli.heads.rela.head import RelaHead, RelaOutput, RelaSettings
from refcli.heads.rela.losses import rela_losses
from refcli.heads.rela.pixel_decoder import PixelDecoder, PixelMaps, sine_positions
from refcli.heads.rela.region_decoder import Memory, RegionAttention, RegionDecoder, RegionLayerSettings, places_inside
from refcli.heads.shared.simple_pyramid import SWIN_BASE_CHANNELS, PyramidMaps
from refcli.model.beit3 import Features
from refcli.weights.official.conversions.rela import OUR_REGIONS, RENAMING, THEIR_REGIONS

BASE = TowerSettings(image_size=480, attention="explicit")
TINY = TowerSettings(image_size=32, patch_size=8, dim=16, layers=1, heads=2, ffn_dim=16, attention="explicit")
SMALL = {
    "dim": 16,
    "heads": 2,
    "regions": 3,
    "decoder_layers": 3,
    "decoder_ffn_dim": 16,
    "pixel_layers": 1,
    "pixel_ffn_dim": 16,
    "pyramid_channels": (8, 8, 8, 8),
}
PIXEL_PARAMETERS, REGION_PARAMETERS = 5_544_384, 14_985_733
TOLERANCE = 1e-4
"""Relative, of a whole tensor: as the golden values allow."""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def difference(logits: torch.Tensor, dim: int) -> torch.Tensor:
    return logits.select(dim, 1) - logits.select(dim, 0)


def tiny_head(tower: TowerSettings = TINY, **settings) -> RelaHead:
    torch.manual_seed(0)
    return RelaHead(RelaSettings(**(SMALL | settings)), tower)


def tiny_features(seed=1, words=5) -> Features:
    torch.manual_seed(seed)
    pad = torch.zeros(2, words, dtype=torch.bool)
    pad[1, 3:] = True
    return Features(torch.randn(2, 17, 16), torch.randn(2, words, 16), pad, (4, 4), (32, 32))


@pytest.mark.parametrize("kind", ["postnorm", "prenorm"])
def test_decoder_losses_and_gradients_are_those_of_the_published_code(fixtures, kind):
    folder = fixtures / "rela_tiny"
    theirs = load_file(folder / "weights.safetensors")
    given, expected = load_file(folder / "inputs.safetensors"), load_file(folder / f"{kind}.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    narrowing = {name: theirs.pop(name).requires_grad_() for name in sorted(theirs) if name.startswith("input_proj")}
    ours = RENAMING.from_official({THEIR_REGIONS + name: tensor for name, tensor in theirs.items()})
    decoder = RegionDecoder(
        RegionLayerSettings(32, heads=4, ffn_dim=48, pre_norm=kind == "prenorm", attention_implementation="explicit"),
        num_layers=4, text_dim=768, mask_dim=16, num_regions=100,
    )  # fmt: skip
    decoder.load_state_dict({name.removeprefix(OUR_REGIONS): tensor for name, tensor in ours.items()})
    levels = tuple(
        F.conv2d(given[f"feature.{i}"], narrowing[f"input_proj.{i}.weight"], narrowing[f"input_proj.{i}.bias"])
        for i in range(3)
    )
    answer = decoder(PixelMaps(given["mask_features"], levels), given["lang_feat"].transpose(1, 2), None)
    assert distance(answer.mask_logits, expected["out.pred_masks"]) < TOLERANCE
    assert distance(answer.minimap_logits, expected["out.pred_logits"]) < TOLERANCE
    assert distance(answer.no_target_logits, expected["out.nt_label"]) < TOLERANCE

    known, exists = torch.ones(2, dtype=torch.bool), given["empty"] == 0
    losses = rela_losses(
        difference(answer.mask_logits, 1), difference(answer.minimap_logits, -1),
        -difference(answer.no_target_logits, -1),
        Targets(torch.zeros(2, 4), given["gt_mask"][:, 0].bool(), known, exists), minimap="centre",
    )  # fmt: skip
    loss = losses["mask_ce"] + 0.1 * losses["minimap_ce"] + 0.1 * losses["no_target_ce"]
    assert loss.item() == pytest.approx(meta["losses"][kind], rel=TOLERANCE)
    loss.backward()
    gradients = {OUR_REGIONS + name: parameter.grad for name, parameter in decoder.named_parameters()}
    gradients = {name.removeprefix(THEIR_REGIONS): grad for name, grad in RENAMING.to_official(gradients).items()}
    gradients |= {name: tensor.grad for name, tensor in narrowing.items()}
    wanted = {name.removeprefix("grad."): tensor for name, tensor in expected.items() if name.startswith("grad.")}
    assert gradients.keys() == wanted.keys()
    assert all(distance(gradients[name], tensor) < TOLERANCE for name, tensor in wanted.items())


def test_the_sine_positions_are_the_published_ones(fixtures):
    given = load_file(fixtures / "rela_tiny" / "inputs.safetensors")["sine_position.0"]
    torch.testing.assert_close(sine_positions((4, 4), 32, like=given).T.view(32, 4, 4), given[0], rtol=0, atol=1e-6)


def test_it_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        model = Grounder.from_settings(ModelSettings(tower=BASE, head=HeadChoice(name="rela")))
        narrow = RelaHead(RelaSettings(pyramid_channels=(256, 256, 256, 256)), BASE)
    assert count(model.head.pixel_decoder) == PIXEL_PARAMETERS
    assert count(model.head.decoder) == REGION_PARAMETERS
    assert count(model.head.pyramid) == 3_349_248
    assert count(model) == 245_407_429
    assert count(narrow.pixel_decoder) == 5_315_008


def test_its_two_decoders_have_the_flops_of_the_published_ones():
    sides = (120, 60, 30, 15)
    with torch.device("meta"):
        head = RelaHead(RelaSettings(), BASE)
        maps = [torch.empty(1, c, side, side) for c, side in zip(SWIN_BASE_CHANNELS, sides, strict=True)]
        text = torch.empty(1, 20, 768)
    with FlopCounterMode(display=False) as pixels:
        pixel_maps = head.pixel_decoder(PyramidMaps(*maps))
    with FlopCounterMode(display=False) as regions:
        answer = head.decoder(pixel_maps, text, None)
    # The published counts hold norms and resizing as well.
    assert pixels.get_total_flops() / 2e9 == pytest.approx(31.5, rel=0.02)
    # Ten times over, the published one makes a whole mask for each of 100 regions, and then resizes it; how it was
    # counted leaves out the masked products of queries and keys.
    per_place, places = 100 * 256, 3 * (15**2 + 30**2 + 60**2)
    expected = 7.5e9 - 10 * per_place * 120**2 + per_place * places + per_place * places
    assert regions.get_total_flops() / 2 == pytest.approx(expected, rel=0.02)
    assert answer.mask_logits.shape == (1, 2, 120, 120)
    assert [level.shape[2:] for level in pixel_maps.levels] == [(15, 15), (30, 30), (60, 60)]


def test_the_whole_model_has_the_flops_stated_in_its_preset():
    with torch.device("meta"):
        model = Grounder.from_settings(ModelSettings(tower=BASE, head=HeadChoice(name="rela"))).eval()
        inputs = torch.empty(1, 3, 480, 480), torch.zeros(1, 22, dtype=torch.long), torch.zeros(1, 22) > 0
    with FlopCounterMode(display=False) as counter:
        model.predict(*inputs)
    assert counter.get_total_flops() / 2e9 == pytest.approx(133.15, rel=0.01)


def test_the_read_outs_start_as_torchs_linear_layers_and_the_rest_as_xaviers():
    decoder = tiny_head().decoder
    for linear in (decoder.minimap, decoder.no_target[0], decoder.mask_filter[0]):
        assert linear.weight.abs().max() <= linear.in_features**-0.5
        assert linear.bias.any()
    assert not decoder.mlps[0].mlp[0].bias.any()


def test_region_attention_equals_torchs_own_within_the_open_places():
    torch.manual_seed(0)
    ours, theirs = (
        RegionAttention(RegionLayerSettings(12, heads=3, ffn_dim=12, pre_norm=False, attention_implementation="sdpa")),
        nn.MultiheadAttention(12, 3, batch_first=True),
    )
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.out.weight.data, ours.out.bias.data
    x, positions, keys, values = (torch.randn(2, n, 12) for n in (4, 4, 6, 6))
    is_open = torch.rand(2, 1, 4, 6) > 0.3
    blocked = ~is_open.expand(2, 3, 4, 6).flatten(0, 1)
    expected = x + theirs(x + positions[0], keys, values, attn_mask=blocked)[0]
    result = ours(x, Memory(keys, values, is_open), positions=positions[0])
    torch.testing.assert_close(result, F.layer_norm(expected, (12,)), rtol=1e-5, atol=1e-5)


def test_a_region_attends_inside_its_mask_or_everywhere_if_it_is_empty():
    mask_logits = torch.tensor([[[[-3.0, -1], [-2, -1]], [[-1, 2], [-3, -2]]]])
    assert places_inside(mask_logits).tolist() == [[[[True] * 4, [False, True, False, False]]]]


def test_padded_words_are_left_out_and_with_legacy_they_are_not():
    plain, features = tiny_features(), tiny_features()
    features.text[1, 3:] += 1.0
    for legacy in (False, True):
        head = tiny_head(TINY.model_copy(update={"init": "scaled"}), legacy=legacy).eval()
        same = torch.equal(head(plain).mask_logits, head(features).mask_logits)
        assert same is not legacy


def test_the_words_have_no_effect_at_the_start():
    head, features = tiny_head().eval(), tiny_features()
    before = head(features)
    features.text.normal_()
    assert torch.equal(head(features).mask_logits, before.mask_logits)
    nn.init.ones_(head.decoder.language_projection.weight)
    assert not torch.equal(head(features).mask_logits, before.mask_logits)


def test_the_mean_of_the_regions_is_their_sum_divided_by_their_number():
    of_sum, of_mean = (tiny_head(mean_of_regions=how).eval() for how in (False, True))
    of_mean.load_state_dict(of_sum.state_dict())
    with torch.no_grad():
        total, mean = of_sum(tiny_features()), of_mean(tiny_features())
    torch.testing.assert_close(mean.mask_logits * of_sum.config.regions**2, total.mask_logits)
    torch.testing.assert_close(mean.minimap_logits, total.minimap_logits)


@pytest.mark.parametrize(
    ("init", "legacy", "share"), [("scaled", False, 1 / 9), ("scaled", True, 1.0), ("beit3", False, 1.0)]
)
def test_the_mask_is_the_published_sum_unless_the_tower_is_trained_from_scratch(init, legacy, share):
    tower = TINY.model_copy(update={"init": init})
    assert tiny_head(tower, regions=3, legacy=legacy).decoder.share == pytest.approx(share)


def test_odd_and_oblong_grids_make_maps_that_fit_together():
    torch.manual_seed(0)
    decoder = PixelDecoder((4, 5, 6, 7), 16, heads=2, num_layers=1, ffn_dim=8, num_points=2)
    sides = ((12, 20), (6, 10), (3, 5), (2, 3))
    maps = [torch.randn(1, c, *side) for c, side in zip((4, 5, 6, 7), sides, strict=True)]
    result = decoder(PyramidMaps(*maps))
    assert result.mask_features.shape == (1, 16, 12, 20)
    assert [level.shape[2:] for level in result.levels] == [(2, 3), (3, 5), (6, 10)]


def test_under_autocast_every_parameter_of_the_decoders_is_trained():
    head, features = tiny_head(TINY.model_copy(update={"init": "scaled"})), tiny_features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(features)
    sum(part.float().square().sum() for part in vars(output).values()).backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.any() for parameter in head.decoder.mask_filter.parameters())


def test_the_losses_carry_their_weights_and_a_weight_of_zero_switches_one_off():
    torch.manual_seed(0)
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    targets = Targets(torch.rand(2, 4), masks, torch.tensor([True, True]), torch.tensor([True, False]))
    output = RelaOutput(torch.randn(2, 8, 8), torch.randn(2, 9), torch.randn(2))
    raw = rela_losses(output.mask_logits, output.minimap_logits, output.existence_logits, targets, minimap="area")
    weighted = tiny_head().losses(output, targets)
    assert weighted.keys() == {"mask_ce", "minimap_ce", "no_target_ce"}
    for name, weight in (("mask_ce", 5.0), ("minimap_ce", 0.5), ("no_target_ce", 0.5)):
        torch.testing.assert_close(weighted[name], weight * raw[name])
    assert tiny_head(loss_weights={"minimap_ce": 0.0}).losses(output, targets).keys() == {"mask_ce", "no_target_ce"}


def test_a_sample_of_boxes_only_trains_no_mask_but_existence():
    head, known = tiny_head(), torch.tensor([False])
    targets = Targets(torch.rand(1, 4), torch.ones(1, 16, 16, dtype=torch.bool), known, torch.tensor([True]))
    losses = head.losses(RelaOutput(torch.randn(1, 8, 8), torch.randn(1, 9), torch.randn(1)), targets)
    assert losses["mask_ce"] == losses["minimap_ce"] == 0
    assert losses["no_target_ce"] > 0


def test_it_predicts_one_mask_of_all_referents_or_no_target():
    head = tiny_head(existence_threshold=0.4)
    mask_logits = torch.tensor([[[1.0, -1.0], [2.0, -0.1]]] * 2)
    prediction = head.predict(RelaOutput(mask_logits, torch.zeros(2, 9), torch.tensor([2.0, -2.0])))
    assert torch.equal(prediction.mask_logits[:, 0] > 0, mask_logits > 0)
    assert prediction.boxes_xyxy is None, "the box is that of the mask"
    torch.testing.assert_close(prediction.existence, torch.tensor([2.0, -2.0]).sigmoid())
    assert torch.equal(prediction.scores[:, 0], prediction.existence)
    assert (prediction.existence >= prediction.existence_threshold).tolist() == [True, False]


@pytest.mark.parametrize(
    "settings", [{"dim": 12}, {"dim": 16, "heads": 3}, {"pyramid_channels": (8, 8, 0, 8)}, {"minimap_truth": "max"}]
)
def test_settings_that_make_no_head_are_refused(settings):
    with pytest.raises(ValueError, match=r"multiple|pyramid_channels|minimap_truth"):
        RelaSettings(**settings)


@pytest.mark.parametrize("name", ["refcoco", "refcocoplus", "refcocog", "grefcoco"])
def test_the_presets_build_the_published_decoders_on_the_one_tower(name):
    settings = load_finetune(f"rela_{name}")
    with torch.device("meta"):
        grounder = Grounder.from_settings(settings.model)
    assert count(grounder) == 245_407_429
    assert settings.train.batch_size * settings.train.accumulate * 8 == 48
