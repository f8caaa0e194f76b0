"""Negative samples have the requested share and borrowed expressions, and change nothing else."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example, Region
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split
from refcli.data.training.dataset import GroundingDataset
from refcli.data.training.sampling import EndlessSampler, WeightedSampler
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask, mask_box

TOWER = TowerSettings(image_size=24, patch_size=8, dim=64, heads=4)
EXPRESSIONS = {
    "a": ["The red cup", "a left thing"],
    "b": ["the red cup!", "the dog"],
    "c": ["the cat", "the red  CUP", "nothing of the sort"],
    "d": ["a tree"],
}
"""Image -> its expressions; "nothing of the sort" has no target."""


def make_store(out: Path, expressions=EXPRESSIONS, splits=("train",)) -> Store:
    mask = np.zeros((24, 24), dtype=bool)
    mask[4:20, 2:12] = True
    rle = encode_mask(mask)
    (out / "toy").mkdir()
    for number, image in enumerate(expressions):
        Image.new("RGB", (24, 24), (60 * number,) * 3).save(out / "toy" / f"{image}.png")
    for split in splits:
        examples = [
            Example(
                id=f"{split}/{image}/{number}", dataset="toy", split=split, image=f"{image}.png", image_id=image,
                width=24, height=24, expression=text,
                regions=() if text.startswith("nothing") else (Region(mask_box(rle), rle),), kind=f"kind of {image}",
            )
            for image, texts in expressions.items()
            for number, text in enumerate(texts)
        ]  # fmt: skip
        write_manifest(out, [write_split(out, "toy", split, examples)])
    return Store(out)


def make_dataset(store: Store, probability: float, splits=("toy:train",), **options) -> GroundingDataset:
    augment = AugmentSettings(no_target=probability, **options.pop("augment", {}))
    return GroundingDataset(store, list(splits), tower=TOWER, augment=augment, **options)


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.6])
def test_the_share_of_negative_samples_is_the_probability(tmp_path, probability):
    dataset = make_dataset(make_store(tmp_path), probability)
    batches = EndlessSampler(len(dataset), batch_size=50, seed=3)
    keys = [key for step in range(40) for key in batches.batch(step)]
    had = [bool(dataset.example(index).regions) for index, _ in keys]
    exists = [dataset[key].exists for key in keys]

    assert not any(now and not before for before, now in zip(had, exists, strict=True))
    lost = 1 - sum(exists) / sum(had)
    assert lost == pytest.approx(probability, abs=3 * (probability * (1 - probability) / sum(had)) ** 0.5)


def test_a_negative_sample_keeps_its_image_and_id_but_has_no_target(tmp_path):
    store = make_store(tmp_path)
    dataset, plain = make_dataset(store, 1.0), make_dataset(store, 0.0)
    for index in range(len(dataset)):
        sample, before = dataset[index, 5], plain[index, 5]
        assert (sample.id, sample.exists, sample.mask_is_known) == (before.id, False, True)
        assert np.array_equal(sample.image, before.image)
        assert not sample.mask.any()
        assert not sample.box_cxcywh.any()
        if before.exists:
            assert sample.expression != before.expression
            assert before.box_cxcywh.any()


def test_borrowed_expressions_have_a_target_elsewhere_and_are_unused_for_the_image(tmp_path):
    store = make_store(tmp_path)
    dataset = make_dataset(store, 1.0)
    may = {
        "a": {"the dog", "the cat", "a tree"},
        "b": {"a left thing", "the cat", "a tree"},
        "c": {"a left thing", "the dog", "a tree"},
        "d": {"The red cup", "the red cup!", "the red  CUP", "a left thing", "the dog", "the cat"},
    }
    for index in range(len(dataset)):
        example = dataset.example(index)
        if example.regions:
            borrowed = {dataset[index, draw].expression for draw in range(200)}
            assert borrowed == may[example.image_id], example.expression


def test_borrowing_depends_only_on_the_draw(tmp_path):
    dataset = make_dataset(make_store(tmp_path), 0.5)
    again = pickle.loads(pickle.dumps(dataset))
    texts = [[one[0, draw].expression for draw in range(60)] for one in (dataset, again)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_a_weighted_mixture_borrows_across_its_splits_deterministically(tmp_path):
    store = make_store(tmp_path, splits=("train", "more"))
    dataset = make_dataset(store, 0.5, splits=("toy:train", "toy:more"))
    whole = WeightedSampler(dataset.sizes, [3, 1], batch_size=6, seed=1)
    resumed = WeightedSampler(dataset.sizes, [3, 1], batch_size=6, seed=1, start_step=7)
    first = [dataset[key] for key in whole.batch(7)]
    second = [dataset[key] for key in next(iter(resumed))]
    assert [(one.id, one.expression, one.exists) for one in first] == [(s.id, s.expression, s.exists) for s in second]


def test_left_and_right_of_a_borrowed_expression_follow_the_flip(tmp_path):
    dataset = make_dataset(make_store(tmp_path), 1.0, augment={"flip": 1.0})
    borrowed = {dataset[3, draw].expression for draw in range(100)}
    assert "a right thing" in borrowed
    assert "a left thing" not in borrowed


def test_excluded_kinds_are_not_borrowed_but_still_count_as_used_for_their_image(tmp_path):
    dataset = make_dataset(make_store(tmp_path), 1.0, kinds=["kind of b", "kind of d"])
    assert {dataset[2, draw].expression for draw in range(100)} == {"the red cup!", "the dog"}
    assert {dataset[0, draw].expression for draw in range(100)} == {"a tree"}


def test_samples_stay_unchanged_if_every_expression_is_used_for_every_image(tmp_path):
    dataset = make_dataset(make_store(tmp_path, {"a": ["it"], "b": ["It."]}), 1.0)
    assert [dataset[index, 1].exists for index in range(2)] == [True, True]


def test_a_single_image_cannot_borrow(tmp_path):
    with pytest.raises(DataError) as caught:
        make_dataset(make_store(tmp_path, {"a": ["it", "that"]}), 0.1)
    assert caught.value.where == "data.augment.no_target"
