"""Samples are stacked in order, and their expressions padded to the longest."""

import numpy as np
import torch
from PIL import Image

from refcli.config.schema import TextSettings, TowerSettings
from refcli.contracts.example import Example, Region
from refcli.data.training.collate import Collate
from refcli.data.training.dataset import make_sample
from refcli.geometry.masks import encode_mask, mask_box
from refcli.text.tokenizer import PAD, Tokenizer

TOWER = TowerSettings(image_size=(64, 96), patch_size=8, dim=64, heads=4)


def make_samples():
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    rle = encode_mask(mask)
    stated = [
        ("the red square", (Region(mask_box(rle), rle),)),
        ("a circle", ()),
        ("the second blue star from the left", (Region((1.0, 2.0, 30.0, 40.0)),)),
    ]
    return [
        make_sample(
            Image.new("RGB", (60, 40), (number * 100, 0, 0)),
            Example(f"id {number}", "toy", "train", "x.png", "x", 60, 40, expression, regions),
            tower=TOWER,
            augment=None,
            draw=0,
        )
        for number, (expression, regions) in enumerate(stated)
    ]


def test_a_batch_holds_every_sample_in_its_row():
    samples = make_samples()
    batch = Collate(Tokenizer.load(TextSettings()))(samples)
    assert batch.images.shape == (3, 3, 64, 96)
    assert batch.images.dtype == torch.float32
    assert batch.ids == ("id 0", "id 1", "id 2")
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.images[row], sample.image)
        np.testing.assert_array_equal(batch.targets.masks[row], sample.mask)
        np.testing.assert_array_equal(batch.targets.boxes_cxcywh[row], sample.box_cxcywh)
    assert batch.targets.exists.tolist() == [True, False, True]
    assert batch.targets.mask_is_known.tolist() == [True, True, False]
    assert batch.targets.masks.dtype == torch.bool


def test_expressions_are_padded_to_the_longest_and_the_padding_is_marked():
    tokenizer = Tokenizer.load(TextSettings())
    samples = make_samples()
    batch = Collate(tokenizer)(samples)
    encoded = [tokenizer.encode(sample.expression) for sample in samples]
    longest = max(len(ids) for ids in encoded)
    assert batch.token_ids.shape == batch.token_is_pad.shape == (3, longest)
    for row, ids in enumerate(encoded):
        assert batch.token_ids[row, : len(ids)].tolist() == ids
        assert batch.token_is_pad[row].tolist() == [False] * len(ids) + [True] * (longest - len(ids))
        assert (batch.token_ids[row, len(ids) :] == PAD).all()
