"""The data set finds the right record and image for every index."""

import pickle

import numpy as np
import pytest
from call_counting import num_calls
from PIL import Image

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example, Region
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split
from refcli.data.training.dataset import GroundingDataset
from refcli.errors import ConfigError, DataError, ImageError
from refcli.geometry.masks import encode_mask, mask_box

TOWER = TowerSettings(image_size=96, patch_size=8, dim=64, heads=4)


def make_store(out, sizes, width=60, height=40):
    """Splits of a data set "toy"; the number of an example determines the grey level of its image."""
    mask = np.zeros((height, width), dtype=bool)
    mask[10:30, 20:50] = True
    rle = encode_mask(mask)
    (out / "toy").mkdir()
    for split, size in sizes.items():
        examples = []
        for number in range(size):
            Image.new("RGB", (width, height), (number * 10,) * 3).save(out / "toy" / f"{split}-{number}.png")
            kind = ["attribute", "ordinal", None][number % 3]
            examples.append(
                Example(
                    id=f"{split}/{number}",
                    dataset="toy",
                    split=split,
                    image=f"{split}-{number}.png",
                    image_id=str(number),
                    width=width,
                    height=height,
                    expression=f"thing {number}",
                    regions=(Region(mask_box(rle), rle),),
                    kind=kind,
                )
            )
        write_manifest(out, [write_split(out, "toy", split, examples)])
    return Store(out)


def ids(dataset):
    return [dataset[index, 0].id for index in range(len(dataset))]


def test_splits_are_concatenated_in_the_given_order(tmp_path):
    store = make_store(tmp_path, {"train": 3, "val": 2})
    dataset = GroundingDataset(store, ["toy:val", "toy:train"], tower=TOWER, augment=None)
    assert ids(dataset) == ["val/0", "val/1", "train/0", "train/1", "train/2"]
    assert [dataset.example(index).id for index in range(5)] == ids(dataset)


def test_a_sample_shows_its_own_image(tmp_path):
    dataset = GroundingDataset(make_store(tmp_path, {"train": 5}), ["toy:train"], tower=TOWER, augment=None)
    for index in range(5):
        sample = dataset[index, 0]
        expected = (index * 10 / 255 - 0.485) / 0.229
        assert sample.image.shape == (3, 96, 96)
        assert sample.image[0, 48, 48] == pytest.approx(expected, abs=1e-5)
        assert sample.mask[48, 48]


def test_kinds_select_and_limit_cuts(tmp_path):
    store = make_store(tmp_path, {"train": 7, "val": 4})
    splits = ["toy:train", "toy:val"]
    ordinal = GroundingDataset(store, splits, tower=TOWER, augment=None, kinds=["ordinal"])
    assert ids(ordinal) == ["train/1", "train/4", "val/1"]
    both = GroundingDataset(store, splits, tower=TOWER, augment=None, kinds=["ordinal", "attribute"], limit=4)
    assert ids(both) == ["train/0", "train/1", "train/3", "train/4"]
    assert len(GroundingDataset(store, splits, tower=TOWER, augment=None, limit=100)) == 11


def test_an_unknown_kind_or_split_names_the_nearest(tmp_path):
    store = make_store(tmp_path, {"train": 3})
    with pytest.raises(ConfigError) as caught:
        GroundingDataset(store, ["toy:train"], tower=TOWER, augment=None, kinds=["ordnial"])
    assert "did you mean 'ordinal'" in caught.value.hint
    with pytest.raises(DataError) as unknown:
        GroundingDataset(store, ["toy:trane"], tower=TOWER, augment=None)
    assert "toy:train" in unknown.value.hint


def test_no_remaining_samples_are_an_error(tmp_path):
    store = make_store(tmp_path, {"train": 3})
    for settings in ({"splits": []}, {"splits": ["toy:train"], "limit": 0}):
        with pytest.raises(DataError, match="no samples"):
            GroundingDataset(store, tower=TOWER, augment=None, **settings)


def test_a_missing_image_or_one_of_another_size_is_named(tmp_path):
    dataset = GroundingDataset(make_store(tmp_path, {"train": 2}), ["toy:train"], tower=TOWER, augment=None)
    Image.new("RGB", (61, 40)).save(tmp_path / "toy" / "train-0.png")
    with pytest.raises(DataError, match="61 x 40, the store states 60 x 40") as caught:
        dataset[0, 0]
    assert "train-0.png" in caught.value.where
    (tmp_path / "toy" / "train-1.png").unlink()
    with pytest.raises(ImageError, match="no such image"):
        dataset[1, 0]


def test_a_worker_process_gets_the_same_samples(tmp_path):
    store = make_store(tmp_path, {"train": 4})
    augment = AugmentSettings(flip=0.5, min_scale=0.5, translate=True, crop=0.5, colour_jitter=0.4)
    dataset = GroundingDataset(store, ["toy:train"], tower=TOWER, augment=augment)
    dataset.load()
    twin = pickle.loads(pickle.dumps(dataset))
    for index in range(4):
        mine, theirs = dataset[index, 77], twin[index, 77]
        np.testing.assert_array_equal(mine.image, theirs.image)
        np.testing.assert_array_equal(mine.mask, theirs.mask)
        assert not np.array_equal(mine.image, dataset[index, 78].image)


def test_the_work_for_a_sample_does_not_grow_with_its_image(tmp_path):
    def calls_of(side):
        (tmp_path / str(side)).mkdir()
        store = make_store(tmp_path / str(side), {"train": 1}, width=side, height=side)
        Image.new("RGB", (side, side)).save(tmp_path / str(side) / "toy" / "train-0.png", "JPEG")
        dataset = GroundingDataset(store, ["toy:train"], tower=TOWER, augment=AugmentSettings(flip=0.5))
        dataset[0, 3]
        return num_calls(lambda: dataset[0, 3])

    assert calls_of(200) == calls_of(60) < 3000
