"""Prediction files and the per-sample files of evaluations: any content is scored, listed or refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import NASTY, NUM_INPUTS, damaged, fuzz, mutated_json_bytes, mutated_lines
from hypothesis import strategies as st

from refcli.answers.jsonl import answer_to_json
from refcli.cli.evaluate import comparison_text, split_text, systems_text
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, FramedTarget, Target
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.write import write_manifest, write_split
from refcli.evaluation.comparison import compare_runs
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.document import report_document, report_run
from refcli.evaluation.results import check_free, listed_files
from refcli.evaluation.run import Run, Scoring, gated_run, merge_runs, read_run, write_run
from refcli.geometry.masks import encode_mask

SPLIT = "m:val"
BITMAP = np.zeros((12, 16), dtype=bool)
BITMAP[2:8, 3:9] = True
MASK = encode_mask(BITMAP)
BOX = (3.0, 2.0, 9.0, 8.0)
SCORING = Scoring(conventions=choose_conventions(["rela480", "oneref384"]))


def example(number: int, width: int, height: int, *regions: Region) -> Example:
    return Example(f"m/{number}", "m", "val", f"{number}.png", f"m:{number}", width, height, "a cup", regions, "k")


TRUTH = [
    example(0, 16, 12, Region(BOX, MASK)),
    example(1, 16, 12, Region(BOX, MASK), Region((0.0, 0.0, 4.0, 4.0), MASK)),
    example(2, 16, 12),
    example(3, 0, 0, Region(BOX)),
    example(4, 0, 0),
]
TARGET = Target(BOX, 0.9, MASK, frame=FramedTarget((8, 8), (1.0, 1.0, 4.0, 4.0), encode_mask(BITMAP[:8, :8])))
ANSWERS = [
    Answer("m/0", "0.png", "a cup", 16, 12, (TARGET,), False, 0.1, "w"),
    Answer("m/1", "1.png", "a cup", 16, 12, (), True, 0.9, "w", None, (TARGET,), "existence"),
    Answer("m/2", "2.png", "a cup", 16, 12, (TARGET,), True, None, "w"),
    Answer("m/3", "3.png", "a cup", 0, 0, (Target(BOX, 0.5),), False, None, "w"),
    Answer("m/4", "4.png", "a cup", 0, 0, (TARGET,), False, None, "w"),
    Answer("m/0", "0.png", "a cup", 0, 0, (), False, None, "w", "no memory"),
]
LINES = [answer_to_json(answer) for answer in ANSWERS]


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> StoreSplit:
    folder = tmp_path_factory.mktemp("store")
    write_manifest(folder, [write_split(folder, "m", "val", TRUTH)])
    return Store(folder).split(SPLIT)


def make_reports(run: Run) -> None:
    """Make everything that `evaluate` makes of a run, except drawings."""
    report = report_run(run)
    json.dumps(report_document(report)).encode()
    for split in report.splits:
        split_text(split, weights=report.weights).encode()
    systems_text([report, report]).encode()
    assert gated_run(run).splits[0].is_gated


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_prediction_file_is_scored_or_refused(truth, tmp_path, num_inputs):
    path = tmp_path / "answers.jsonl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        run = score_file(path, {SPLIT: truth}, scoring=SCORING)
        assert len(run.splits[0].table) == len(TRUTH)
        make_reports(run)
        write_run(run, tmp_path / "run.parquet")
        assert repr(read_run(tmp_path / "run.parquet").splits[0].table.to_pydict()) == repr(
            run.splits[0].table.to_pydict()
        )

    fuzz(mutated_lines(LINES), read, num_inputs)


@pytest.fixture(scope="module")
def valid(truth, tmp_path_factory) -> Path:
    """The per-sample file of a run."""
    folder = tmp_path_factory.mktemp("valid")
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, [*LINES, {"id": 1}])))
    path = folder / "per_sample.parquet"
    write_run(score_file(folder / "answers.jsonl", {SPLIT: truth}, scoring=SCORING), path)
    return path


@st.composite
def changed_files(draw: st.DrawFn, valid: Path) -> bytes:
    """The file with other facts, with other columns, or with damaged bytes."""
    content = valid.read_bytes()
    kind = draw(st.sampled_from(("facts", "columns", "both", "bytes")))
    if kind == "bytes":
        return draw(damaged([content]))
    table = pq.read_table(io.BytesIO(content))
    facts = table.schema.metadata[b"refcli"]
    if kind in ("facts", "both"):
        facts = draw(mutated_json_bytes([json.loads(facts)]))
    if kind in ("columns", "both"):
        table = draw(changed_columns(table))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"refcli": facts}), sink)
    return sink.getvalue()


@st.composite
def changed_columns(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    """The table with one to three columns removed, replaced or renamed, or with rows repeated."""
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(table.column_names))
        at = table.column_names.index(name)
        match draw(st.sampled_from(("remove", "value", "value", "type", "rename", "rows"))):
            case "remove" if len(table.column_names) > 1:
                table = table.remove_column(at)
            case "value":
                table = table.set_column(at, name, draw(changed_column(table[name])))
            case "type":
                nasty = draw(st.sampled_from(([None], [True], [1], [-1.5], ["x"], [b"\xff"], [[1]], [{"a": 1}])))
                table = table.set_column(at, name, pa.array(nasty * len(table)))
            case "rename":
                table = table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
            case _:
                table = pa.concat_tables([table, table.slice(0, 1)])
    return table


@st.composite
def changed_column(draw: st.DrawFn, column: pa.ChunkedArray) -> pa.Array:
    """The column with one value replaced by one that its type can hold."""
    values: list[Any] = column.to_pylist()
    values[draw(st.integers(0, len(values) - 1))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return column.combine_chunks()


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_per_sample_file_is_read_or_refused(valid, tmp_path, num_inputs):
    path = tmp_path / "per_sample.parquet"
    good = read_run(valid)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        run = read_run(path)
        make_reports(run)
        merge_runs({"one": run})
        for comparison in compare_runs(good, run):
            comparison_text(comparison, this="this", other=run.weights).encode()

    fuzz(changed_files(valid), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_summary_lists_files_of_an_evaluation_only(tmp_path, num_inputs):
    document = {"schema": "refcli.evaluation/1", "files": ["summary.json", "report.html", "../x"]}

    def read(content: bytes) -> None:
        (tmp_path / "summary.json").write_bytes(content)
        assert listed_files(tmp_path) <= {"summary.json", "report.html", "per_sample.parquet"}
        check_free(tmp_path, force=True)

    fuzz(mutated_json_bytes([document]), read, num_inputs)
