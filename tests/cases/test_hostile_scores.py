"""Untrusted prediction and per-sample files: odd lines are listed, odd files refused, odd boxes reported."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from refcli.cli.progress import ProgressBars
from refcli.contracts.example import Example, Region
from refcli.data.store.write import write_manifest, write_split
from refcli.evaluation.answer_lines import MOST_LINE_BYTES

SPLIT = "m:val"
BOX = (10.0, 20.0, 60.0, 70.0)


def example(number: int, kind: str | None = None) -> Example:
    image = f"{number}.png"
    return Example(f"m/{number}", "m", "val", image, f"m:{number}", 640, 480, "a cup", (Region(BOX),), kind)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    truth = [example(number, "odd\x1b[31m\nkind" if number == 2 else "plain") for number in range(4)]
    write_manifest(folder, [write_split(folder, "m", "val", truth)])
    return folder


def record(number: int, box: tuple | list = BOX, **changes: object) -> dict:
    target = {"box": list(box), "score": 0.9, "mask": None}
    return {
        "schema": "refcli.prediction/1", "id": f"m/{number}", "image": "", "expression": "", "width": 640,
        "height": 480, "targets": [target], "no_target": False, "no_target_score": None, "weights": "w", "error": None,
    } | changes  # fmt: skip


@pytest.fixture
def score(refcli, store, tmp_path):
    """`evaluate --predictions` on lines: (exit code, stdout, stderr)."""

    def run(lines: list[dict | str | bytes], *arguments: object, name: str = "p.jsonl") -> tuple[int, str, str]:
        texts = [one if isinstance(one, str | bytes) else json.dumps(one) for one in lines]
        content = b"\n".join(one.encode() if isinstance(one, str) else one for one in texts)
        (tmp_path / name).write_bytes(content)
        return refcli("evaluate", "--data", store, "--split", SPLIT, "--predictions", tmp_path / name, *arguments)

    return run


def good(*numbers: int) -> list[dict]:
    return [record(number) for number in numbers]


ODD = {
    "a lone surrogate in the id": {"id": "\ud83d"},
    "a boolean as id": {"id": True},
    "a huge width": {"width": 10**400},
    "a fractional width": {"width": 640.5},
    "a width in words": {"width": "wide"},
    "no list of targets": {"targets": "none"},
    "a target that is a number": {"targets": [3]},
    "five sides": {"targets": [{"box": [1, 2, 3, 4, 5], "score": 1, "mask": None}]},
    "a box in words": {"targets": [{"box": "1234", "score": 1, "mask": None}]},
    "a huge box": {"targets": [{"box": [10**400] * 4, "score": 1, "mask": None}]},
    "a score that is a list": {"targets": [{"box": [1, 2, 3, 4], "score": [1], "mask": None}]},
    "a mask without a size": {"targets": [{"box": [1, 2, 3, 4], "score": 1, "mask": {"counts": "0"}}]},
    "a mask of 2**62 pixels": {
        "targets": [{"box": [1, 2, 3, 4], "score": 1, "mask": {"size": [2**31, 2**31], "counts": "0"}}]
    },
    "run lengths that do not fill the mask": {
        "targets": [{"box": [1, 2, 3, 4], "score": 1, "mask": {"size": [480, 640], "counts": "0001"}}]
    },
    "a frame without a size": {"targets": [{"box": [1, 2, 3, 4], "score": 1, "mask": None, "frame": {"box": None}}]},
    "an error that is a number": {"error": 3},
    "a probability in words": {"no_target_score": "likely"},
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_is_listed_and_the_others_are_scored(score, odd):
    code, out, err = score([*good(0, 1, 2), record(3, **ODD[odd])], "--json")
    assert code == 3
    assert json.loads(out)["splits"][SPLIT]["overall"]["count"] == 3
    problems = json.loads(out)["problems"]["p.jsonl"]
    assert sum(one["count"] for one in problems.values()) == 1
    assert "p.jsonl:4: " in err


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"[" * 100_000, b"9" * 10_000, b"{", b"[1]", b"null", b'{"schema": "\\ud83d"}']
)
def test_a_line_that_is_not_a_record_is_listed(score, line):
    code, out, _ = score([*good(0, 1, 2, 3), line], "--json")
    assert code == 3
    assert json.loads(out)["problems"]["p.jsonl"]["not a prediction"]["count"] == 1
    assert json.loads(out)["metrics"]["m/val/acc50"] == 1


def test_texts_that_no_encoding_holds_are_shown_and_written(score, tmp_path, refcli):
    lines = [record(0, error="\ud83d\x1b[2J", targets=[]), *good(1, 2, 3)]
    code, out, err = score(lines, "--out", tmp_path / "out", "--report", "--cases", "0")
    assert code == 3
    assert "\x1b" not in out + err
    assert refcli("evaluate", "--merge", tmp_path / "out")[0] == 3


def test_a_box_that_covers_nothing_or_overflows_is_a_miss(score):
    for box in ([float("nan")] * 4, [1e308, 1e308, -1e308, 1e308], [-1e308, -1e308, 1e308, 1e308], [0, 0, 0, 0]):
        code, out, _ = score([*good(0, 1, 2), record(3, box)], "--json")
        assert code == 0
        assert json.loads(out)["metrics"]["m/val/acc50"] == 0.75


def test_a_line_without_end_is_refused_in_little_memory(refcli, store, tmp_path):
    with gzip.open(tmp_path / "endless.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, _, err = refcli("evaluate", "--data", store, "--split", SPLIT, "--predictions", tmp_path / "endless.jsonl.gz")
    assert code == 5
    assert f"line 1 is longer than {MOST_LINE_BYTES >> 20} MiB" in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-le"])
def test_the_encoding_of_a_file_that_is_not_utf8_is_named(refcli, store, tmp_path, kind):
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, good(0, 1))), encoding=kind)
    code, _, err = refcli("evaluate", "--data", store, "--split", SPLIT, "--predictions", tmp_path / "p.jsonl")
    assert code == 5
    assert "it is UTF-16" in err


def test_names_in_evaluation_tables_never_control_the_terminal(score, tmp_path):
    lines = [record(0, weights="\x1b[31m"), *good(1, 2), record(7, id="m/\x1b]0;pwn\x07")]
    name = "p\x1b[5m.jsonl"
    score(lines, "--out", tmp_path / "other", name=name)
    for arguments in ((), ("--compare", tmp_path / "other"), ("--predictions", tmp_path / name)):
        code, out, err = score(lines, *arguments, name=name)
        assert code == 3
        assert "odd\\x1b[31m\\nkind" in out or "--predictions" in arguments
        assert "\x1b" not in out
        assert "\x1b" not in err


@pytest.mark.parametrize(
    ("box", "warning"),
    [
        ((0.1, 0.2, 0.5, 0.9), "within 0..1"),
        ((0, 0, 1, 1), "within 0..1"),
        ((700, 500, 900, 990), "within 0..1000"),
        (BOX, None),
        ((1700, 500, 1900, 990), None),
    ],
)
def test_boxes_in_other_units_than_pixels_are_noticed(score, tmp_path, refcli, box, warning):
    lines = [record(number, box) for number in range(4)]
    code, out, err = score(lines, "--json", "--out", tmp_path / "out", "--report", "--cases", "0")
    assert code == 0
    warnings = json.loads(out)["warnings"]
    assert [warning in one for one in warnings] == ([True] if warning else [])
    assert ("warning: p.jsonl: all 4 boxes lie" in err) == bool(warning)
    assert ("boxes lie within" in (tmp_path / "out/report.html").read_text()) == bool(warning)
    merged = json.loads(refcli("evaluate", "--merge", tmp_path / "out", "--json")[1])
    assert merged["warnings"] == warnings


def test_one_box_in_pixels_is_enough_to_trust_the_others(score):
    lines = [record(number, (0.1, 0.2, 0.5, 0.9)) for number in range(3)]
    assert "warning" not in score([*lines, record(3)])[2]


def changed(path: Path, **changes: object) -> bytes:
    """A per-sample file with other facts; a dotted name reaches a nested key."""
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"refcli"])
    for name, value in changes.items():
        place = facts
        *above, last = name.split("__")
        for key in above:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return written(table, facts)


def written(table: pa.Table, facts: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"refcli": json.dumps(facts).encode()}), sink)
    return sink.getvalue()


FACTS = {
    "no weights": {"weights": None},
    "a list of weights": {"weights": ["w"]},
    "another schema": {"schema": "refcli.per_sample/9"},
    "no rule for missing lines": {"scoring__missing": None},
    "an unknown rule for missing lines": {"scoring__missing": "maybe"},
    "thresholds": {"scoring__score_threshold": [0.7]},
    "no original": {"scoring__conventions": ["gsva"]},
    "an unknown convention": {"scoring__conventions": ["original", "mine"]},
    "a convention without its columns": {"scoring__conventions": ["original", "rela480"]},
    "a convention that is a number": {"scoring__conventions": 3},
    "no splits": {"splits": {}},
    "splits that are a text": {"splits": "m:val"},
    "another split": {"splits": {"x:y": {"size": 4, "total": 4, "seconds": 1.0}}},
    "a size below 0": {"splits__m:val__size": -1},
    "a size that is too small": {"splits__m:val__size": 2},
    "a size in words": {"splits__m:val__size": "many"},
    "problems that are a text": {"problems": "none"},
    "problems without a line": {"problems": {"p": {"wrong size": {"count": 1, "first": ["p:x: y"]}}}},
    "warnings that are a number": {"warnings": 3},
}


@pytest.fixture(scope="module")
def run_file(store, tmp_path_factory) -> Path:
    """The per-sample file of an evaluation."""
    from refcli.recipes.evaluate import SplitSelection, evaluate_file

    folder = tmp_path_factory.mktemp("run")
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, good(0, 1, 2, 3))))
    evaluate_file(folder / "p.jsonl", SplitSelection(store, [SPLIT])).write(folder / "out")
    return folder / "out" / "per_sample.parquet"


def refused(refcli, store, tmp_path, content: bytes) -> str:
    """The errors of --merge and --compare, which must both refuse the file."""
    path = tmp_path / "odd.parquet"
    path.write_bytes(content)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, good(0, 1, 2, 3))))
    messages = []
    for arguments in (
        ("--merge", path),
        ("--data", store, "--split", SPLIT, "--predictions", tmp_path / "p.jsonl", "--compare", path),
    ):
        code, out, err = refcli("evaluate", *arguments)
        assert (code, out) == (5, ""), err
        assert "unexpected error" not in err
        messages.append(err)
    return messages[0]


@pytest.mark.parametrize("odd", FACTS)
def test_facts_that_no_evaluation_writes_are_refused(refcli, store, run_file, tmp_path, odd):
    assert "not a per-sample file" in refused(refcli, store, tmp_path, changed(run_file, **FACTS[odd]))


COLUMNS = {
    "image": None,
    "counts": None,
    "union": None,
    "id": pa.array([1, 2, 3, 4]),
    "num_targets": pa.array([1, 1, -1, 1]),
    "box_iou": pa.array([0.5, 7.0, 0.5, 0.5]),
    "says_none": pa.array([True, None, False, False]),
    "intersection": pa.array([0, 9, 0, 0]),
    "error": pa.array([[1]] * 4),
    "kind": pa.array([b"\xff"] * 4),
}


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "id"])
def test_columns_that_no_evaluation_writes_are_refused(refcli, store, run_file, tmp_path, name):
    table = pq.read_table(run_file)
    facts = json.loads(table.schema.metadata[b"refcli"])
    at = table.column_names.index(name)
    table = table.remove_column(at) if COLUMNS[name] is None else table.set_column(at, name, COLUMNS[name])
    assert "not a per-sample file" in refused(refcli, store, tmp_path, written(table, facts))


def test_a_split_of_a_billion_samples_is_not_counted_through(refcli, run_file, tmp_path):
    path = tmp_path / "part.parquet"
    path.write_bytes(changed(run_file, **{"splits__m:val__size": 10**12, "splits__m:val__total": 10**12}))
    code, _, err = refcli("evaluate", "--merge", path)
    assert code == 5
    assert "999999999996 are in no part" in err


def test_per_sample_files_of_earlier_versions_are_read_with_their_meaning(refcli, run_file, tmp_path):
    table = pq.read_table(run_file)
    facts = json.loads(table.schema.metadata[b"refcli"])
    table = table.drop_columns(["states_none", "num_framed", "is_gated"])
    for says_none, num_found, gated in ((True, 0, True), (True, 1, False), (False, 1, False)):
        rows = {"says_none": [says_none] * 4, "num_found": [num_found] * 4}
        old = table
        for name, values in rows.items():
            old = old.set_column(old.column_names.index(name), name, pa.array(values))
        (tmp_path / "old.parquet").write_bytes(written(old, facts))
        code, out, _ = refcli("evaluate", "--merge", tmp_path / "old.parquet", "--json")
        assert code == 0
        document = json.loads(out)
        assert document["splits"][SPLIT]["gated"] is gated
        assert document["metrics"]["m/val/t_acc"] == float(not says_none)


def test_progress_shows_any_name_literally():
    screen = io.StringIO()
    with ProgressBars(Console(file=screen, force_terminal=True, width=100)) as bars:
        bars.for_group("p[/bold]\x1b]0;pwn\x07.jsonl")("m:val", 1, 2)
    assert "p[/bold]\\x1b]0;pwn\\x07.jsonl m:val" in screen.getvalue()
    assert "\x1b]0" not in screen.getvalue()


@pytest.mark.parametrize("kind", ["fifo", "folder without a run", "nothing"])
def test_anything_but_a_regular_file_is_refused_at_once(refcli, tmp_path, kind):
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder without a run":
        path.mkdir()
    code, out, err = refcli("evaluate", "--merge", path)
    assert (code, out) == (5, "")
    assert ("not a regular file" if kind == "fifo" else "no such file") in err


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"box": [1, 2, 3], "score": 1, "mask": None}, "a box has 3 numbers"),
        ({"box": [1, 2, 3, 4], "score": 1, "mask": {"size": [480, 640], "counts": [0, 307200]}}, "must be text"),
        ({"box": [1, 2, 3, 4], "score": 1, "mask": [[1, 1, 9, 1, 9, 9]]}, "a mask is"),
        ({"box": [1, 2, 3, 4], "score": 1, "mask": None, "frame": [1]}, "a frame is"),
        ([1, 2, 3, 4], "a target is"),
    ],
)
def test_a_malformed_field_is_described_in_plain_words(score, target, reason):
    code, _, messages = score([*good(0, 1, 2), record(3, targets=[target])])
    assert code == 3
    assert reason in messages
    assert "Error" not in messages
    assert "object" not in messages
