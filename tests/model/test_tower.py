"""The tower at other sizes, types and modes than the published ones."""

import pytest
import torch

from refcli.config.schema import TowerSettings
from refcli.model.beit3 import OneTower
from refcli.model.multiway import Tokens

TINY = {"image_size": 32, "patch_size": 8, "dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "vocabulary_size": 50}


def make_tower(**changes) -> OneTower:
    torch.manual_seed(0)
    return OneTower(TowerSettings(**{**TINY, "drop_path": 0.0, "init": "scaled", **changes})).eval()


def make_text(batch=2):
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])[:batch]
    return ids, ids == 1


def test_an_oblong_image_becomes_an_oblong_grid():
    features = make_tower()(torch.randn(2, 3, 24, 48), *make_text())
    assert features.grid == (3, 6)
    assert features.patches.shape == (2, 18, 32)
    assert features.image_size == (24, 48)


def test_padded_words_change_nothing():
    tower, images = make_tower(), torch.randn(2, 3, 32, 32)
    ids, is_pad = make_text()
    more = torch.cat([ids, torch.ones(2, 3, dtype=torch.int64)], 1)
    with torch.no_grad():
        short, long = tower(images, ids, is_pad), tower(images, more, more == 1)
    torch.testing.assert_close(short.vision, long.vision, rtol=0, atol=2e-6)
    torch.testing.assert_close(short.text[~is_pad], long.text[:, :4][~is_pad], rtol=0, atol=2e-6)


def test_a_batch_equals_its_samples_one_by_one():
    tower, images = make_tower(), torch.randn(2, 3, 32, 32)
    ids, is_pad = make_text()
    with torch.no_grad():
        together = tower(images, ids, is_pad).vision
        alone = torch.cat([tower(images[i : i + 1], ids[i : i + 1], is_pad[i : i + 1]).vision for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


def test_masked_patches_do_not_show_their_pixels():
    tower, ids = make_tower(), make_text()
    torch.nn.init.normal_(tower.vision_embedding.mask_token)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, 5] = True
    images = torch.randn(2, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 8:16, 8:16] += 1.0  # patch 5 = row 1, column 1
    with torch.no_grad():
        same = [tower(pixels, *ids, patch_is_masked=masked).vision for pixels in (images, changed)]
        other = [tower(pixels, *ids).vision for pixels in (images, changed)]
    assert torch.equal(*same)
    assert not torch.allclose(*other)


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        tower = make_tower(checkpoint_activations=checkpointed).train()
        torch.manual_seed(1)
        tower(torch.randn(2, 3, 32, 32), *make_text()).vision.square().sum().backward()
        gradients.append(tower.encoder.blocks[0].attention.qkv.vision.weight.grad)
    torch.testing.assert_close(*gradients)


def test_drop_path_drops_whole_samples_in_training_only():
    tower = make_tower(drop_path=0.9)
    images, text = torch.randn(2, 3, 32, 32), make_text()
    with torch.no_grad():
        assert torch.equal(tower(images, *text).vision, tower(images, *text).vision)
        tower.train()
        assert not torch.equal(tower(images, *text).vision, tower(images, *text).vision)
        for alone in (lambda: tower.encode_texts(*text), lambda: tower.encode_images(images)):
            assert len({alone().sum().item() for _ in range(20)}) > 1


@pytest.mark.parametrize("how", ["sdpa", "explicit"])
def test_bfloat16_weights_and_autocast_stay_near_float32(how):
    tower = make_tower(attention=how)
    images, (ids, is_pad) = torch.randn(2, 3, 32, 32), make_text()
    with torch.no_grad():
        exact = tower(images, ids, is_pad).vision
        with torch.autocast("cpu", torch.bfloat16):
            autocast = tower(images, ids, is_pad).vision
        half = tower.bfloat16()(images.bfloat16(), ids, is_pad).vision
    assert (autocast.float() - exact).abs().mean() < 0.02
    assert (half.float() - exact).abs().mean() < 0.02


@pytest.mark.compiles
def test_the_tower_compiles_without_graph_breaks():
    tower = make_tower()
    explanation = torch._dynamo.explain(tower)(torch.randn(2, 3, 32, 32), *make_text())
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1


def test_base_and_large_have_the_published_number_of_parameters():
    with torch.device("meta"):
        base = OneTower(TowerSettings())
        large = OneTower(TowerSettings(dim=1024, layers=24, heads=16, ffn_dim=4096))
    assert sum(p.numel() for p in base.parameters()) == 221_279_232
    assert sum(p.numel() for p in large.parameters()) == 673_091_584


@pytest.mark.parametrize("checkpointed", [False, True])
def test_drop_path_draws_for_attention_and_ffn_of_each_layer_in_turn(checkpointed):
    tower = make_tower(drop_path=0.5, layers=3, checkpoint_activations=checkpointed).train()
    images, (ids, is_pad) = torch.randn(2, 3, 32, 32), make_text()

    def add(rows, change, rate):
        if rate > 0:
            keep = change.vision.new_empty(2, 1, 1).bernoulli_(1 - rate).div_(1 - rate)
            change = type(rows)(change.vision * keep, change.text * keep)
        return type(rows)(rows.vision + change.vision, rows.text + change.text)

    torch.manual_seed(3)
    out = tower(images, ids, is_pad).vision
    after = torch.get_rng_state()
    torch.manual_seed(3)
    rows = Tokens(tower.vision_embedding(images)[0], tower.text_embedding(ids, is_pad))
    is_real = torch.cat([torch.ones(2, 17, dtype=torch.bool), ~is_pad], 1)[:, None, None]
    for block, rate in zip(tower.encoder.blocks, (0.0, 0.25, 0.5), strict=True):
        rows = add(rows, block.attention(block.attention_norm(rows), is_real), rate)
        rows = add(rows, block.ffn(block.ffn_norm(rows)), rate)
    assert torch.equal(out, tower.encoder.norm(rows).vision)
    assert torch.equal(after, torch.get_rng_state())
