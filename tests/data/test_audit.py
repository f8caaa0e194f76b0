"""Overlaps between splits are counted as they are, and no more."""

import random
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from refcli.contracts.example import Example, Region
from refcli.data.audit import audit_store, distinct_pictures
from refcli.data.perceptual_hash import difference_hash, find_look_alikes, hash_pictures
from refcli.data.store import Store, StoreSplit, write_manifest, write_split

BOX = (1.0, 2.0, 11.0, 12.0)
OTHER_BOX = (20.0, 2.0, 31.0, 12.0)


def make_store(out, dataset="toy", **splits):
    """Splits of a data set: lists of (image id, text, regions), a region being a box or (box, source id)."""
    summaries = []
    for split, rows in splits.items():
        examples = [
            Example(
                id=f"{split}/{number}",
                dataset=dataset,
                split=split,
                image=f"{image_id.replace(':', '_')}.png",
                image_id=image_id,
                width=100,
                height=50,
                expression=text,
                regions=tuple(
                    Region(region) if isinstance(region[0], float) else Region(region[0], None, region[1])
                    for region in regions
                ),
            )
            for number, (image_id, text, regions) in enumerate(rows)
        ]
        summaries.append(write_split(out, dataset, split, examples))
    write_manifest(out, summaries)
    return Store(out)


def counts(overlap):
    return overlap.shared_images, overlap.shared_objects, overlap.identical_examples


def only_overlap(out, train, val):
    (overlap,) = audit_store(make_store(out, train=train, val=val)).overlaps
    assert (overlap.train, overlap.evaluation, overlap.look_alikes) == ("toy:train", "toy:val", None)
    return counts(overlap)


def test_splits_with_nothing_in_common_share_nothing(tmp_path):
    assert only_overlap(tmp_path, [("coco:1", "a cat", [BOX])], [("coco:2", "a cat", [BOX])]) == (0, 0, 0)


def test_an_image_is_shared_by_its_id_even_where_no_object_is(tmp_path):
    train = [("coco:1", "a cat", [BOX]), ("coco:2", "a dog", [BOX])]
    val = [("coco:1", "a cat", [OTHER_BOX]), ("coco:1", "a hat", [OTHER_BOX]), ("coco:3", "a dog", [BOX])]

    assert only_overlap(tmp_path, train, val) == (1, 0, 0)


def test_an_object_is_shared_by_its_source_id_or_by_its_box(tmp_path):
    moved = tuple(value + 3 for value in BOX)
    train = [("coco:1", "a cat", [(BOX, "coco:77")]), ("coco:2", "a dog", [BOX])]
    val = [
        ("coco:1", "the tabby", [(moved, "coco:77")]),
        ("coco:1", "the pet", [(moved, "coco:77")]),
        ("coco:2", "the terrier", [(BOX, "coco:88")]),
        ("coco:3", "no such image in train", [(BOX, "coco:77")]),
    ]

    assert only_overlap(tmp_path, train, val) == (2, 2, 0)


def test_boxes_are_compared_to_a_hundredth_of_a_pixel(tmp_path):
    near = tuple(value + 0.004 for value in BOX)
    far = tuple(value + 0.011 for value in OTHER_BOX)
    train = [("coco:1", "a cat", [BOX]), ("coco:1", "a dog", [OTHER_BOX])]

    assert only_overlap(tmp_path, train, [("coco:1", "x", [near]), ("coco:1", "y", [far])]) == (1, 1, 0)


def test_an_empty_source_id_identifies_nothing(tmp_path):
    assert only_overlap(tmp_path, [("coco:1", "a", [(BOX, "")])], [("coco:1", "b", [(OTHER_BOX, "")])]) == (1, 0, 0)


def test_examples_are_identical_by_image_text_and_all_boxes_in_any_order(tmp_path):
    train = [
        ("coco:1", "two cats", [BOX, OTHER_BOX]),
        ("coco:1", "no dog", []),
        ("coco:1", "one cat", [BOX]),
    ]
    val = [
        ("coco:1", "Two  cats ", [OTHER_BOX, BOX]),
        ("coco:1", "no dog", []),
        ("coco:1", "one cat", [BOX, OTHER_BOX]),
        ("coco:1", "one cat", []),
        ("coco:2", "no dog", []),
    ]

    assert only_overlap(tmp_path, train, val) == (1, 2, 2)


def test_every_pair_of_training_and_evaluation_splits_is_compared_and_no_other(tmp_path):
    same = [("coco:1", "a cat", [BOX])]
    store = make_store(tmp_path, train=same, trainval=same, val=same, testA=[("coco:5", "a cat", [BOX])])
    audit = audit_store(store)

    assert {(overlap.train, overlap.evaluation): counts(overlap) for overlap in audit.overlaps} == {
        ("toy:train", "toy:val"): (1, 1, 1),
        ("toy:train", "toy:testA"): (0, 0, 0),
        ("toy:trainval", "toy:val"): (1, 1, 1),
        ("toy:trainval", "toy:testA"): (0, 0, 0),
    }
    assert {overlap.evaluation for overlap in audit.overlapping} == {"toy:val"}


def test_repetitions_and_ambiguities_within_a_split_are_counted(tmp_path):
    rows = [
        ("coco:1", "a cat", [BOX]),
        ("coco:1", "A cat", [BOX]),
        ("coco:1", "a cat", [OTHER_BOX]),
        ("coco:2", "a cat", [BOX]),
        ("coco:2", "a dog", [(BOX, "coco:1")]),
        ("coco:2", "a dog", []),
        ("coco:2", "a dog", []),
    ]
    (split,) = audit_store(make_store(tmp_path, val=rows)).splits

    assert (split.examples, split.images) == (7, 2)
    assert split.duplicate_expressions == 2  # "A cat", and the second "a dog" of nothing
    assert split.ambiguous_expressions == 3 + 3


def test_the_counts_are_those_of_plain_sets_on_random_splits(tmp_path):
    dice = random.Random(0)
    boxes = [(float(x), 0.0, float(x + 5), 5.0) for x in range(4)]

    def rows():
        for _ in range(300):
            regions = [
                (box, f"s{number}") if dice.random() < 0.5 else box
                for number, box in enumerate(dice.sample(boxes, dice.choice([0, 1, 1, 2, 3])))
            ]
            yield f"coco:{dice.randrange(40)}", dice.choice(["a", "b", "c"]), regions

    def boxes_of(regions):
        return tuple(sorted(region if isinstance(region[0], float) else region[0] for region in regions))

    train, val = list(rows()), list(rows())
    audit = audit_store(make_store(tmp_path, train=train, val=val))
    triples = [(image, text, boxes_of(regions)) for image, text, regions in val]
    in_train = {(image, text, boxes_of(regions)) for image, text, regions in train}
    meanings = {}
    for image, text, where in triples:
        meanings.setdefault((image, text), set()).add(where)
    split = next(split for split in audit.splits if split.name == "toy:val")

    assert audit.overlaps[0].shared_images == len({row[0] for row in train} & {row[0] for row in val})
    assert audit.overlaps[0].identical_examples == sum(triple in in_train for triple in triples)
    assert split.duplicate_expressions == len(triples) - len(set(triples))
    assert split.ambiguous_expressions == sum(len(meanings[image, text]) > 1 for image, text, _ in triples)


def test_an_empty_store_has_no_overlaps(tmp_path):
    write_manifest(tmp_path, [])
    audit = audit_store(Store(tmp_path))

    assert audit.to_json() == {
        "schema": "refcli.audit/1",
        "splits": [],
        "overlaps": [],
        "not_audited": [],
        "look_alikes": None,
        "unreadable_pictures": {},
    }


def test_focus_splits_are_compared_as_training_splits(tmp_path):
    same = [("coco:1", "a cat", [BOX])]
    audit = audit_store(make_store(tmp_path, Focus_1=same, val=same))
    assert [(overlap.train, overlap.evaluation) for overlap in audit.overlaps] == [("toy:Focus_1", "toy:val")]


def two_data_sets(out):
    """toy and other, which share coco:1; other:train has nothing of toy:val but other pictures, other:test neither."""
    make_store(out, train=[("coco:1", "a cat", [BOX]), ("coco:4", "a cow", [BOX])], val=[("coco:2", "a dog", [BOX])])
    return make_store(
        out,
        "other",
        train=[("coco:7", "a cat", [BOX])],
        val=[("coco:1", "a cat", [BOX]), ("coco:8", "a", [BOX]), ("coco:1", "it", [OTHER_BOX])],
        test=[("coco:9", "a cat", [BOX])],
    )


def test_with_only_some_data_sets_their_splits_and_pairs_are_as_in_the_whole_audit(tmp_path):
    store = two_data_sets(tmp_path)
    hashes = {"coco:1": 0, "coco:2": 3, "coco:4": 0xFF << 20, "coco:7": 3, "coco:8": 0xFF << 40, "coco:9": 1}
    whole, part = (audit_store(store, only=only, hashes=hashes) for only in (None, {"toy"}))

    assert [split.name for split in part.splits] == ["toy:train", "toy:val"]
    assert set(part.splits) < set(whole.splits)
    assert part.overlaps == tuple(
        overlap for overlap in whole.overlaps if "toy" in overlap.train or "toy" in overlap.evaluation
    )
    assert {(overlap.train, overlap.evaluation): counts(overlap) for overlap in part.overlaps} == {
        ("toy:train", "toy:val"): (0, 0, 0),
        ("toy:train", "other:val"): (1, 1, 1),
        ("toy:train", "other:test"): (0, 0, 0),
        ("other:train", "toy:val"): (0, 0, 0),
    }
    assert set(part.look_alikes) == {("coco:1", "coco:2", 2), ("coco:1", "coco:9", 1)} | {("coco:7", "coco:2", 0)}
    assert set(whole.look_alikes) - set(part.look_alikes) == {("coco:7", "coco:9", 1), ("coco:7", "coco:1", 2)}


def test_texts_and_boxes_are_read_of_the_wanted_splits_and_of_those_that_share_their_images(tmp_path, monkeypatch):
    store = two_data_sets(tmp_path)
    read = set()
    tables = StoreSplit.tables

    def watched(split, columns=None):
        if columns is None or "expression" in columns:
            read.add(split.name)
        return tables(split, columns)

    monkeypatch.setattr(StoreSplit, "tables", watched)
    audit_store(store, only={"toy"})
    assert read == {"toy:train", "toy:val", "other:val"}


def test_a_split_whose_parts_are_not_all_there_is_named_and_the_others_are_audited(tmp_path):
    store = make_store(tmp_path, train=[("coco:1", "a", [BOX])], val=[("coco:1", "a", [BOX])])
    summary = write_split(tmp_path, "toy", "test", [replace(store.split("toy:val")[0], split="test")])
    write_manifest(tmp_path, [summary], part=(1, 2))
    store = Store(tmp_path)
    audit = audit_store(store)

    assert audit.not_audited == ("toy:test",)
    assert [split.name for split in audit.splits] == ["toy:train", "toy:val"]
    assert audit.to_json()["not_audited"] == ["toy:test"]
    assert list(distinct_pictures(store)) == ["coco:1"]


def test_forty_thousand_examples_are_audited_in_a_second(tmp_path):
    rows = [(f"coco:{number // 5}", f"number {number % 3000}", [(BOX, f"coco:{number}")]) for number in range(20_000)]
    store = make_store(tmp_path, train=rows, val=rows)
    start = time.process_time()
    audit = audit_store(store)

    assert counts(audit.overlaps[0]) == (4_000, 20_000, 20_000)
    assert time.process_time() - start < 1


def waves(seed, size=(320, 240)):
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_the_hash_compares_each_cell_with_its_left_neighbour():
    rising = Image.fromarray(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1)))
    step = np.zeros((8, 9), np.uint8)
    step[0, 1:] = 255

    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(Image.new("RGB", (30, 20), "red")) == 0
    assert difference_hash(Image.fromarray(step)) == 1 << 63


def test_a_copy_in_another_size_and_quality_looks_alike_and_another_picture_does_not(tmp_path):
    for name, image in {"a": waves(1), "b": waves(1, (200, 150)), "c": waves(2)}.items():
        image.save(tmp_path / f"{name}.jpg", quality=60 if name == "b" else 95)
    found = hash_pictures({name: tmp_path / f"{name}.jpg" for name in "abcd"})
    train = {"a": found.hashes["a"]}
    evaluation = {name: found.hashes[name] for name in "abc"}

    assert list(found.unreadable) == [str(tmp_path / "d.jpg")]
    assert [(pair.train, pair.evaluation) for pair in find_look_alikes(train, evaluation)] == [("a", "b")]


def test_several_workers_find_the_same_hashes(tmp_path):
    pictures = {}
    for number in range(20):
        pictures[str(number)] = tmp_path / f"{number}.png"
        waves(number, (20, 20)).save(pictures[str(number)])
    seen = []
    alone = hash_pictures(pictures, progress=lambda done, total: seen.append((done, total)))

    assert hash_pictures(pictures, workers=2) == alone
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

    found = find_look_alikes(train, evaluation, max_distance=max_distance)
    assert {pair[:2]: pair.distance for pair in found} == near
    assert len(found) == len(near) > 0


def test_look_alikes_are_counted_for_the_splits_that_hold_them(tmp_path):
    store = make_store(
        tmp_path,
        train=[("coco:1", "a", [BOX]), ("coco:2", "a", [BOX])],
        train_b=[("coco:2", "a", [BOX])],
        val=[("vg:1", "a", [BOX]), ("coco:2", "a", [BOX])],
        test=[("vg:3", "a", [BOX])],
    )
    hashes = {"coco:1": 0b1111, "coco:2": 1 << 40, "vg:1": 0b1100, "vg:3": 1 << 63 | 1 << 20 | 1 << 10}
    audit = audit_store(store, hashes=hashes)

    assert audit.look_alikes == (("coco:1", "vg:1", 2),)
    assert {(row.train, row.evaluation): row.look_alikes for row in audit.overlaps} == {
        ("toy:train", "toy:val"): 1,
        ("toy:train", "toy:test"): 0,
        ("toy:train_b", "toy:val"): 0,
        ("toy:train_b", "toy:test"): 0,
    }
    assert audit_store(store, hashes=hashes, max_distance=1).look_alikes == ()
    assert audit_store(store, hashes={}).look_alikes == ()


def test_each_picture_of_the_store_is_named_once(tmp_path):
    store = make_store(
        tmp_path, train=[("coco:1", "a", [BOX]), ("coco:1", "b", [BOX]), ("coco:2", "b", [])], val=[("coco:2", "c", [])]
    )

    assert distinct_pictures(store) == {f"coco:{n}": tmp_path / "toy" / f"coco_{n}.png" for n in (1, 2)}


def test_the_document_is_plain_json_values(tmp_path):
    store = make_store(tmp_path, train=[("a", "x", [BOX])], val=[("b", "x", [BOX])])
    document = audit_store(store, hashes={"a": 0, "b": 0}).to_json()

    assert document["look_alikes"] == [{"train": "a", "evaluation": "b", "distance": 0}]
    assert document["overlaps"][0]["look_alikes"] == 1
    assert type(document["splits"][0]["examples"]) is int
    assert pa.array([document["splits"][0]]).type.num_fields == 7
