"""Overlaps between splits are counted exactly."""

import random
from dataclasses import replace

from audited_stores import BOX, OTHER_BOX, counts, make_store, only_overlap, two_data_sets
from call_counting import num_calls

from refcli.data.audit.overlaps import audit_store, distinct_images
from refcli.data.shard import Shard
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.write import write_manifest, write_split


def test_disjoint_splits_share_nothing(tmp_path):
    assert only_overlap(tmp_path, [("coco:1", "a cat", [BOX])], [("coco:2", "a cat", [BOX])]) == (0, 0, 0)


def test_an_image_is_shared_by_its_id_even_without_a_shared_object(tmp_path):
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
    assert split.duplicate_expressions == 2  # "A cat", and the second "a dog", which has no target
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
    assert set(part.near_duplicates) == {("coco:1", "coco:2", 2), ("coco:1", "coco:9", 1)} | {("coco:7", "coco:2", 0)}
    assert set(whole.near_duplicates) - set(part.near_duplicates) == {("coco:7", "coco:9", 1), ("coco:7", "coco:1", 2)}


def test_texts_and_boxes_are_read_only_of_wanted_splits_and_those_that_share_their_images(tmp_path, monkeypatch):
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


def test_an_incomplete_split_is_named_and_the_others_are_audited(tmp_path):
    store = make_store(tmp_path, train=[("coco:1", "a", [BOX])], val=[("coco:1", "a", [BOX])])
    summary = write_split(tmp_path, "toy", "test", [replace(store.split("toy:val")[0], split="test")])
    write_manifest(tmp_path, [summary], part=Shard(1, 2))
    store = Store(tmp_path)
    audit = audit_store(store)

    assert audit.not_audited == ("toy:test",)
    assert [split.name for split in audit.splits] == ["toy:train", "toy:val"]
    assert audit.to_json()["not_audited"] == ["toy:test"]
    assert list(distinct_images(store)) == ["coco:1"]


def test_an_audit_has_no_loop_over_examples(tmp_path):
    def calls_of(size):
        rows = [(f"coco:{number // 5}", f"number {number % 300}", [(BOX, f"coco:{number}")]) for number in range(size)]
        (tmp_path / str(size)).mkdir()
        store = make_store(tmp_path / str(size), train=rows, val=rows)
        assert counts(audit_store(store).overlaps[0]) == (size // 5, size, size)
        return num_calls(lambda: audit_store(store))

    assert calls_of(5_000) < calls_of(50) + 100
