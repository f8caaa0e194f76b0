"""A model compiles into a few programs that accept any batch size and any number of words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from refcli.config.pretraining import MRefMSettings
from refcli.config.schema import HeadChoice, ModelSettings, TextSettings, TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.engine.compiling import RECOMPILE_LIMITS as LIMITS
from refcli.engine.compiling import RECOMPILE_SWITCHES as SWITCHES
from refcli.engine.compiling import compile_parts
from refcli.engine.measuring.memory import first_samples
from refcli.grounder import Grounder
from refcli.model.beit3 import OneTower
from refcli.pretraining.mrefm import MRefM
from refcli.weights.directory import load_weights

pytestmark = pytest.mark.compiles

SIDE, VOCABULARY, MASK_ID = 32, 50, 40
TOWER = {
    "image_size": SIDE,
    "patch_size": 8,
    "dim": 32,
    "layers": 4,
    "heads": 2,
    "ffn_dim": 64,
    "vocabulary_size": VOCABULARY,
    "max_text_positions": 32,
}
SMALL_CHANNELS = [16, 16, 16, 16]
RELA = {
    "dim": 16,
    "heads": 2,
    "regions": 3,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "pixel_layers": 1,
    "pixel_ffn_dim": 32,
    "pyramid_channels": SMALL_CHANNELS,
}
HEADS = [
    ("oneref", {"rec": True, "res": True, "existence": True}),
    ("oneref", {"rec": False, "res": True, "mask_dim": 16}),
    ("shared_ris", {"dim": 16, "heads": 2, "existence": True}),
    ("shared_ris", {"dim": 16, "heads": 2, "fpn": "none", "threshold_first": True}),
    ("cgformer", {"dim": 16, "pyramid_channels": SMALL_CHANNELS, "existence": True}),
    ("cgformer", {"dim": 16, "pyramid_channels": SMALL_CHANNELS, "lite": True}),
    ("rela", RELA),
    ("rela", {**RELA, "legacy": True}),
]


@pytest.fixture(autouse=True)
def _own_compiler():
    """Start without compiled programs, and restore the compiler's settings afterwards."""
    config = torch._dynamo.config
    switch, limit = (next(name for name in names if hasattr(config, name)) for names in (SWITCHES, LIMITS))
    torch._dynamo.reset()
    with config.patch({switch: getattr(config, switch), limit: getattr(config, limit)}):
        yield
    torch._dynamo.reset()


def make_text(batch: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, MASK_ID, (batch, words))
    ids[:, 0], ids[0, -1] = 0, 1
    return ids, ids == 1


def make_batch(size: int, words: int) -> Batch:
    ids, is_pad = make_text(size, words)
    masks = torch.zeros(size, SIDE, SIDE, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    everywhere = torch.ones(size, dtype=torch.bool)
    boxes = torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(size, 4)
    truth = Targets(boxes, masks, everywhere, everywhere)
    names = tuple(f"sample {number}" for number in range(size))
    return Batch(torch.randn(size, 3, SIDE, SIDE), ids, is_pad, truth, names, torch.zeros_like(ids))


@pytest.mark.slow
def test_blocks_with_different_rates_of_drop_path_are_one_program_each_for_training_and_validation():
    tower = OneTower(TowerSettings(**{**TOWER, "layers": 24}, drop_path=0.4))
    counter = CompileCounter()
    for block in tower.encoder.blocks:
        block.compile(backend=counter)
    for is_training in (True, False, True):
        tower.train(is_training)
        with torch.set_grad_enabled(is_training):
            tower(torch.randn(4, 3, SIDE, SIDE), *make_text(4, 6))
    # The first block drops nothing, so training has two.
    assert counter.frame_count == 3


@pytest.mark.slow
def test_a_compiled_tower_trains_on_any_batch_size_and_any_number_of_words():
    tower = OneTower(TowerSettings(**{**TOWER, "layers": 1}, drop_path=0.4)).train()
    compile_parts([tower])
    counter = CompileCounter()
    tower.compile(backend=counter)
    for size, words in ((4, 6), (4, 7), (3, 7), (1, 4)):
        tower(torch.randn(size, 3, SIDE, SIDE), *make_text(size, words)).vision.sum().backward()
    assert counter.frame_count <= 5


@pytest.mark.slow
def test_compiled_pretraining_validates_at_other_batch_sizes():
    torch.manual_seed(0)
    head = HeadChoice(settings={"loss_weights": {"box_l1": 0.0, "box_giou": 0.0}})
    grounder = Grounder.from_settings(
        ModelSettings(tower=TowerSettings(**{**TOWER, "layers": 1}), text=TextSettings(max_tokens=16), head=head)
    )
    settings = MRefMSettings(loss_weights={"mim": 0.0, "semantic_target_relation": 0.0})
    mrefm = MRefM(grounder, settings, codes=None, teacher=None, mask_id=MASK_ID, seed=0)
    compile_parts([grounder.tower, grounder.head])
    for part in (grounder.tower, grounder.head):
        part.compile(backend="eager")
    whole = make_batch(4, 7)
    for size, words in ((4, 7), (4, 6), (3, 7)):
        some = first_samples(whole, size)
        shorter = {name: getattr(some, name)[:, :words] for name in ("token_ids", "token_is_pad", "word_roles")}
        batch = replace(some, **shorter)
        mrefm.train()
        for step in (0, 1):
            mrefm(batch, step)
        mrefm.eval()
        with torch.inference_mode():
            losses = [mrefm(batch, step) for step in (0, 1)]
        assert all(torch.isfinite(value) for each in losses for value in each.values())


class Asked(nn.Module):
    """`Grounder.predict` as a module that returns tensors."""

    def __init__(self, grounder: Grounder) -> None:
        super().__init__()
        self.grounder = grounder

    def forward(self, images, token_ids, token_is_pad):
        found = self.grounder.predict(images, token_ids, token_is_pad)
        answer = (found.boxes_xyxy, found.scores, found.mask_logits, found.existence)
        return tuple(part for part in answer if part is not None)


def assert_export_answers_any_batch(grounder: Grounder) -> None:
    side = grounder.tower.settings.image_size[0]

    def asked(size: int, words: int):
        return torch.randn(size, 3, side, side), *make_text(size, words)

    text = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    model = Asked(grounder.eval())
    program = torch.export.export(model, asked(2, 6), dynamic_shapes=({0: Dim.DYNAMIC}, text, text)).module()
    for size, words in ((2, 6), (3, 9), (1, 4)):
        inputs = asked(size, words)
        with torch.no_grad():
            for ours, exported in zip(model(*inputs), program(*inputs), strict=True):
                torch.testing.assert_close(exported, ours, rtol=1e-4, atol=1e-4)


def test_the_packaged_model_is_exported_for_any_batch():
    torch.manual_seed(0)
    assert_export_answers_any_batch(load_weights("builtin").grounder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), HEADS)
def test_every_head_is_exported_for_any_batch(name, settings):
    torch.manual_seed(0)
    model = ModelSettings(
        tower=TowerSettings(**TOWER),
        text=TextSettings(max_tokens=16),
        head=HeadChoice(name=name, settings=settings),
    )
    assert_export_answers_any_batch(Grounder.from_settings(model))
