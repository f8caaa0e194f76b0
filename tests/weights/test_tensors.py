"""Exactly the tensors that do not fit a model are named, each with its problem."""

import torch

from refcli.weights.tensors import Mismatch, find_mismatches, summarize

WANTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "count": torch.tensor(0)}


def test_tensors_that_fit_have_no_row_in_any_precision():
    given = {"a": torch.zeros(2, 3).half(), "b": torch.zeros(4).double(), "count": torch.tensor(1, dtype=torch.int32)}
    assert find_mismatches(WANTED, given) == []


def test_each_mismatch_has_one_row_with_its_problem():
    given = {"b": torch.zeros(5, dtype=torch.int64), "count": torch.tensor(1.0), "odd": torch.zeros(1)}
    rows = find_mismatches(WANTED, given)
    assert rows == [
        Mismatch("a", "missing", wanted=(2, 3)),
        Mismatch("b", "wrong shape", (5,), (4,)),
        Mismatch("count", "wrong type", "float32", "integers"),
        Mismatch("odd", "unexpected", (1,)),
    ]
    assert [row.sentence("head.") for row in rows] == [
        "head.a is missing",
        "head.b has shape (5,) instead of (4,)",
        "head.count holds float32 instead of integers",
        "head.odd is not part of the model",
    ]


def test_tensors_on_meta_are_enough_on_either_side():
    wanted = {name: tensor.to("meta") for name, tensor in WANTED.items()}
    given = {**wanted, "a": torch.zeros(2, 3, dtype=torch.bool, device="meta")}
    assert find_mismatches(wanted, given) == [Mismatch("a", "wrong type", "bool", "floating-point numbers")]


def test_a_summary_counts_the_tensors_that_it_does_not_name():
    rows = find_mismatches({f"t{number}": torch.zeros(1) for number in range(7)}, {})
    assert summarize(rows[:1], prefix="tower.") == "(1 tensor): tower.t0 is missing"
    assert summarize(rows).startswith("(7 tensors): t0 is missing; ")
    assert summarize(rows).endswith("t4 is missing; and 2 more")
