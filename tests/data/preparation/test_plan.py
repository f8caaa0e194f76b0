"""The split of a custom file comes from its name, or is assumed with a note."""

import json

import pytest

from refcli.data.preparation.plan import plan_file

LINE = json.dumps({"image": "a.jpg", "expression": "the cup", "box": [1, 2, 30, 40]})


def plan_of(folder, name, **given):
    (folder / name).write_text(LINE + "\n")
    return plan_file(folder / name, name="mine", **given)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("my_train.jsonl", "train"),
        ("my.test.jsonl", "test"),
        ("cups.v2.testA.jsonl.gz", "testA"),
        ("testb.jsonl", "testB"),
        ("my-valid.jsonl", "val"),
        ("validation.jsonl", "val"),
        ("Dev_cups.jsonl", "val"),
        ("cups_val2017.jsonl", "val"),
        ("train_split.test.jsonl", "test"),
        ("minival.jsonl", "minival"),
    ],
)
def test_a_word_of_the_file_name_is_its_split(tmp_path, name, split):
    plan = plan_of(tmp_path, name)
    assert list(plan.files) == [split]
    assert plan.notes == ()


@pytest.mark.parametrize("name", ["cups.jsonl", "contest.jsonl", "trainer.jsonl"])
def test_a_file_without_a_split_in_its_name_is_read_as_training_data_with_a_note(tmp_path, name):
    plan = plan_of(tmp_path, name)
    assert list(plan.files) == ["train"]
    assert plan.notes == (f"{name}: read as the split train; --split names another",)


def test_a_named_split_needs_no_note(tmp_path):
    plan = plan_of(tmp_path, "cups.jsonl", split="holdout")
    assert list(plan.files) == ["holdout"]
    assert plan.notes == ()
