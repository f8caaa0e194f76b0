"""Requests come from files, folders, globs and JSON lines, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refcli.errors import UsageError
from refcli.inference.requests import Request, parse_request_lines, read_requests


def parse(*lines: bytes | dict, folder: Path | None = None, expressions: tuple[str, ...] = ()) -> list[Request]:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return list(parse_request_lines(raw, "r.jsonl", folder, expressions))


def test_every_expression_is_asked_about_every_image_in_order():
    requests = list(read_requests(["a.jpg", "b.jpg"], ["x", "y"]))
    assert [(request.image, request.expression) for request in requests] == [
        ("a.jpg", "x"), ("a.jpg", "y"), ("b.jpg", "x"), ("b.jpg", "y"),
    ]  # fmt: skip
    assert len({request.id for request in requests}) == 4


def test_folders_are_searched_recursively_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [Path(request.image).relative_to(tmp_path) for request in read_requests([str(tmp_path)], ["x"])]
    assert images == [Path("a.jpg"), Path("b.PNG"), Path("deep/c.webp")]


def test_globs_are_expanded_and_a_file_name_with_brackets_is_taken_literally(tmp_path):
    for name in ("a1.jpg", "a2.jpg", "a[1].jpg", "b.jpg"):
        (tmp_path / name).touch()
    globbed = [Path(request.image).name for request in read_requests([str(tmp_path / "a?.jpg")], ["x"])]
    assert globbed == ["a1.jpg", "a2.jpg"]
    literal = [Path(request.image).name for request in read_requests([str(tmp_path / "a[1].jpg")], ["x"])]
    assert literal == ["a[1].jpg"]


@pytest.mark.parametrize(
    ("inputs", "expressions", "files", "message"),
    [
        ([], ["x"], [], "there is no input"),
        (["a.jpg"], [], [], "no expression"),
        (["*.nothing"], ["x"], [], "matches no file"),
        (["none.jsonl"], [], [], "no such request file"),
        (["-"], [], ["-"], "only once"),
    ],
)
def test_inputs_that_cannot_give_requests_are_refused_before_anything_runs(
    inputs, expressions, files, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        read_requests(inputs, expressions, files)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no input contains readable images"):
        read_requests([str(tmp_path)], ["x"])


def test_lines_ask_one_expression_or_several():
    one, first, second = parse({"image": "a", "expression": "x"}, {"id": 7, "image": "b", "expressions": ["u", "v"]})
    assert (one.id, one.image, one.expression) == ("r.jsonl:1", "a", "x")
    assert (first.id, first.expression, second.id, second.expression) == ("7#0", "u", "7#1", "v")


def test_lines_without_an_expression_use_those_of_the_command_line():
    requests = parse({"image": "a", "id": "i"}, {"image": "b", "expression": "own"}, expressions=("x", "y"))
    assert [(request.id, request.expression) for request in requests] == [
        ("i#0", "x"),
        ("i#1", "y"),
        ("r.jsonl:2", "own"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"[1, 2]", "a request is an object"),
        (b'{"expression": "x"}', '"image" must be'),
        (b'{"image": 3, "expression": "x"}', '"image" must be'),
        (b'{"imgae": "a", "expression": "x"}', "is 'imgae' a typo"),
        (b'{"image": "a"}', '"expression" is missing'),
        (b'{"image": "a", "expresion": "x"}', "is 'expresion' a typo"),
        (b'{"image": "a", "expression": null}', "must be a string"),
        (b'{"image": "a", "expressions": []}', "list of strings"),
        (b'{"image": "a", "expressions": "xy"}', "list of strings"),
        (b'{"image": "a", "expression": "x", "expressions": ["y"]}', "not both"),
    ],
)
def test_a_malformed_line_becomes_an_error_with_its_number_and_the_rest_continues(line, message):
    before, bad, after = parse({"image": "a", "expression": "x"}, line, {"image": "b", "expression": "y"})
    assert before.error is None
    assert after.error is None
    assert bad.error.startswith("r.jsonl:2: ")
    assert message in bad.error


def test_blank_lines_are_skipped_but_counted_and_a_byte_order_mark_is_ignored():
    first, second = parse(
        b'\xef\xbb\xbf{"image": "a", "expression": "x"}', b"", b"  \r\n", {"image": "b", "expression": "y"}
    )
    assert first.image == "a"
    assert second.id == "r.jsonl:4"


def test_relative_paths_are_resolved_here_first_and_then_beside_the_file(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place, names in ((here, ["both.jpg"]), (there, ["both.jpg", "only.jpg"])):
        place.mkdir()
        for name in names:
            (place / name).touch()
    (there / "r.jsonl").write_text(
        "".join(json.dumps({"image": n, "expression": "x"}) + "\n" for n in ("both.jpg", "only.jpg"))
    )
    monkeypatch.chdir(here)
    both, only = read_requests([str(there / "r.jsonl")])
    assert both.source == Path("both.jpg")
    assert only.source == there / "only.jpg"
    assert only.image == "only.jpg"


def test_stdin_is_read_line_by_line(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        requests = read_requests(["-"])
        for name in ("a", "b"):
            pipe.write(json.dumps({"image": name, "expression": "x"}).encode() + b"\n")
            assert next(requests).image == name
