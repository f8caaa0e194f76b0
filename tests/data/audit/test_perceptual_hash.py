"""Perceptual hashes and the search for near-duplicates."""

import random

import numpy as np
import pyarrow as pa
import pytest
from audited_stores import BOX, make_store, waves
from PIL import Image

from refcli.data.audit.overlaps import audit_store, distinct_images
from refcli.data.audit.perceptual_hash import difference_hash, find_near_duplicates, hash_images


def test_the_hash_compares_each_cell_with_its_left_neighbour():
    rising = Image.fromarray(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1)))
    step = np.zeros((8, 9), np.uint8)
    step[0, 1:] = 255

    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(Image.new("RGB", (30, 20), "red")) == 0
    assert difference_hash(Image.fromarray(step)) == 1 << 63


def test_a_copy_in_another_size_and_quality_is_a_near_duplicate_and_another_image_is_not(tmp_path):
    for name, image in {"a": waves(1), "b": waves(1, (200, 150)), "c": waves(2)}.items():
        image.save(tmp_path / f"{name}.jpg", quality=60 if name == "b" else 95)
    found = hash_images({name: tmp_path / f"{name}.jpg" for name in "abcd"})
    train = {"a": found.hashes["a"]}
    evaluation = {name: found.hashes[name] for name in "abc"}

    assert list(found.unreadable) == [str(tmp_path / "d.jpg")]
    assert [(pair.train, pair.evaluation) for pair in find_near_duplicates(train, evaluation)] == [("a", "b")]


def test_several_workers_find_the_same_hashes(tmp_path):
    images = {}
    for number in range(20):
        images[str(number)] = tmp_path / f"{number}.png"
        waves(number, (20, 20)).save(images[str(number)])
    seen = []
    alone = hash_images(images, progress=lambda done, total: seen.append((done, total)))

    assert hash_images(images, workers=2) == alone
    assert seen[-1] == (20, 20)


@pytest.mark.parametrize("max_distance", [0, 1, 2, 5, 8])
def test_the_search_finds_exactly_the_pairs_within_the_distance(max_distance):
    dice = random.Random(max_distance)
    train = {f"t{number}": dice.getrandbits(64) for number in range(60)}
    evaluation = {}
    for number in range(200):
        flipped = dice.sample(range(64), dice.randrange(11))
        evaluation[f"e{number}"] = dice.choice(list(train.values())) ^ sum(1 << bit for bit in flipped)
    near = {
        (one, other): (a ^ b).bit_count()
        for one, a in train.items()
        for other, b in evaluation.items()
        if (a ^ b).bit_count() <= max_distance
    }

    found = find_near_duplicates(train, evaluation, max_distance=max_distance)
    assert {pair[:2]: pair.distance for pair in found} == near
    assert len(found) == len(near) > 0


def test_near_duplicates_are_counted_for_the_splits_that_hold_them(tmp_path):
    store = make_store(
        tmp_path,
        train=[("coco:1", "a", [BOX]), ("coco:2", "a", [BOX])],
        train_b=[("coco:2", "a", [BOX])],
        val=[("vg:1", "a", [BOX]), ("coco:2", "a", [BOX])],
        test=[("vg:3", "a", [BOX])],
    )
    hashes = {"coco:1": 0b1111, "coco:2": 1 << 40, "vg:1": 0b1100, "vg:3": 1 << 63 | 1 << 20 | 1 << 10}
    audit = audit_store(store, hashes=hashes)

    assert audit.near_duplicates == (("coco:1", "vg:1", 2),)
    assert {(row.train, row.evaluation): row.near_duplicates for row in audit.overlaps} == {
        ("toy:train", "toy:val"): 1,
        ("toy:train", "toy:test"): 0,
        ("toy:train_b", "toy:val"): 0,
        ("toy:train_b", "toy:test"): 0,
    }
    assert audit_store(store, hashes=hashes, max_distance=1).near_duplicates == ()
    assert audit_store(store, hashes={}).near_duplicates == ()


def test_each_image_of_the_store_is_listed_once(tmp_path):
    store = make_store(
        tmp_path, train=[("coco:1", "a", [BOX]), ("coco:1", "b", [BOX]), ("coco:2", "b", [])], val=[("coco:2", "c", [])]
    )

    assert distinct_images(store) == {f"coco:{n}": tmp_path / "toy" / f"coco_{n}.png" for n in (1, 2)}


def test_the_document_is_plain_json_values(tmp_path):
    store = make_store(tmp_path, train=[("a", "x", [BOX])], val=[("b", "x", [BOX])])
    document = audit_store(store, hashes={"a": 0, "b": 0}).to_json()

    assert document["look_alikes"] == [{"train": "a", "evaluation": "b", "distance": 0}]
    assert document["overlaps"][0]["look_alikes"] == 1
    assert type(document["splits"][0]["examples"]) is int
    assert pa.array([document["splits"][0]]).type.num_fields == 7
