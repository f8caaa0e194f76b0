"""The parts of a split together give the metrics of the whole, and no sample is lost or repeated."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.data.shard import Shard
from refcli.data.store.read import RowReader, Store
from refcli.errors import DataError, UsageError
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.evaluation.predictions import RowIndex
from refcli.evaluation.report.document import report_document, report_run
from refcli.evaluation.run import PER_SAMPLE, Run, Scoring, merge_runs, read_run, write_run
from refcli.geometry.masks import encode_mask
from refcli.inference.predictor import AnsweredRequest

SPLIT = "synthetic:test"
SCORING = Scoring(choose_conventions(["all"]), score_threshold=0.5)


def filled(box: tuple[float, float, float, float], height: int, width: int) -> RLE:
    """The mask of a box."""
    left, top, right, bottom = map(int, box)
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


class Clumsy:
    """Answers a box that depends on the expression, and cannot answer a few."""

    def answer_requests(self, requests, *, raw):
        for request in requests:
            size = 20 + 7 * (len(request.expression) % 5)
            box = (30.0, 40.0, 30.0 + size, 40.0 + size)
            error = "no idea" if len(request.expression) % 9 == 0 else None
            width, height = SIZES[request.id]
            target = Target(box, 0.6, filled(box, height, width))
            says_none = len(request.expression) % 7 == 0
            answer = Answer(request.id, request.image, "", width, height, (target,), says_none, 0.3, "w", error)
            yield AnsweredRequest(request, answer)


SIZES: dict[str, tuple[int, int]] = {}


@pytest.fixture(autouse=True)
def _sizes(examples):
    SIZES.update({example.id: (example.width, example.height) for example in examples})


def run_of(store, shard: Shard, scoring: Scoring = SCORING) -> Run:
    split = Store(store).split(SPLIT)
    rows = shard.rows(len(split))
    result = evaluate_split(Clumsy(), split, name=SPLIT, rows=rows, size=len(split), scoring=scoring)
    return Run("clumsy", "float32", scoring, (result,))


def document(run: Run) -> dict:
    """All metrics, without the times."""
    made = json.loads(json.dumps(report_document(report_run(run))))
    for split in made["splits"].values():
        del split["seconds"]
    return made


@pytest.mark.parametrize("total", [1, 2, 7, 60])
def test_any_number_of_parts_in_any_order_is_the_whole(store, total, tmp_path):
    whole = document(run_of(store, Shard()))
    assert 0 < whole["metrics"]["synthetic/test/box_miou"] < 1
    assert whole["splits"][SPLIT]["failures"]
    for number in reversed(range(1, total + 1)):
        (tmp_path / str(number)).mkdir()
        write_run(run_of(store, Shard(number, total)), tmp_path / str(number) / PER_SAMPLE)
    parts = {name: read_run(tmp_path / name) for name in map(str, range(total, 0, -1))}
    assert document(merge_runs(parts)) == whole


def test_the_parts_are_uneven_by_one_at_most_and_hold_every_row_once():
    for size, total in [(48, 7), (3, 7), (10, 1), (0, 2)]:
        parts = [Shard(number, total).rows(size) for number in range(1, total + 1)]
        assert [row for part in parts for row in part] == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_file_holds_a_row_per_sample_that_other_programs_can_read(store, examples, tmp_path):
    write_run(run_of(store, Shard()), tmp_path / PER_SAMPLE)
    rows = pq.read_table(tmp_path / PER_SAMPLE).to_pylist()
    assert [row["id"] for row in rows] == [example.id for example in examples]
    for row, example in zip(rows, examples, strict=True):
        assert (row["split"], row["kind"], row["image"]) == (SPLIT, example.kind, example.image)
        assert (row["num_words"], row["num_targets"]) == (len(example.expression.split()), len(example.regions))
        if row["counts"] and example.regions:
            assert row["mask_iou"] == pytest.approx(row["intersection"] / row["union"])
            assert 0 < row["box_share"] <= 1
            assert row["union_stretched480"] > row["union"]
        elif not row["counts"]:
            assert row["error"] == "no idea"


def test_a_part_that_is_missing_or_given_twice_is_refused(store):
    first, second = run_of(store, Shard(1, 2)), run_of(store, Shard(2, 2))
    with pytest.raises(DataError, match="24 are in no part"):
        merge_runs({"a": first})
    with pytest.raises(DataError, match="24 in more than one"):
        merge_runs({"a": first, "b": second, "c": second})


def test_parts_of_different_runs_are_refused(store):
    first = run_of(store, Shard(1, 2))
    other = run_of(store, Shard(2, 2), Scoring(("original",), score_threshold=0.7))
    with pytest.raises(DataError, match="not of one run"):
        merge_runs({"a": first, "b": other})


def test_a_part_with_another_limit_is_refused(store):
    split = Store(store).split(SPLIT)
    parts = {
        name: Run("w", "f", Scoring(), (evaluate_split(Clumsy(), split, name=SPLIT, rows=rows, size=size),))
        for name, rows, size in [("a", range(10), 20), ("b", range(10, 30), 30)]
    }
    with pytest.raises(DataError, match="different sizes"):
        merge_runs(parts)


def test_another_file_than_a_per_sample_file_is_refused(tmp_path, store):
    (tmp_path / "text.parquet").write_text("no")
    for path in (tmp_path / "text.parquet", tmp_path, store / "synthetic/test.parquet"):
        with pytest.raises(DataError, match="not a per-sample file"):
            read_run(path)


def test_shards_are_written_as_number_of_total():
    assert Shard.parse("2/7") == Shard(2, 7)
    for text in ("0/7", "8/7", "7", "a/b", "1/", "-1/2"):
        with pytest.raises(UsageError, match="I/N"):
            Shard.parse(text)


def test_a_split_that_keeps_one_row_group_reads_the_others_again(make_store, examples, monkeypatch):
    split = Store(make_store(examples, rows_per_group=10)).split(SPLIT, groups_kept=1)
    read = []
    monkeypatch.setattr("refcli.data.store.read.RowReader", lambda table: read.append(len(table)) or RowReader(table))
    assert [split[index] for index in range(len(split))] == examples
    assert read == [10, 10, 10, 10, 8]
    assert split[0] == examples[0]
    assert read[5:] == [10]
    index = RowIndex.of(split)
    assert [index.candidates(example.id) for example in examples] == [[row] for row in range(len(examples))]
    assert index.candidates("unknown/id") == []
    with pytest.raises(IndexError):
        split[len(split)]
