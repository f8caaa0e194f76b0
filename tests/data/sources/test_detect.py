"""The format of a file is recognised by its first bytes, or the user must choose it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from refcli.data.sources.detect import detect_format
from refcli.data.sources.table import SOURCES
from refcli.errors import DataError, UsageError

COCO = {"info": {}, "images": [{"id": 1, "file_name": "a.jpg", "caption": "x"}], "annotations": []}
ODVG = {
    "filename": "a.jpg",
    "height": 9,
    "width": 9,
    "grounding": {"caption": "x", "regions": [{"bbox": [1, 2, 3, 4], "phrase": "x"}]},
}
OWN = {"image": "a.jpg", "expression": "x", "box": [1, 2, 3, 4]}


@pytest.mark.parametrize(("document", "expected"), [(COCO, "coco"), (ODVG, "odvg"), (OWN, "jsonl")])
@pytest.mark.parametrize("is_packed", [False, True])
def test_each_format_is_distinguished_from_all_others_by_content_alone(tmp_path, document, expected, is_packed):
    path = tmp_path / "data"
    text = json.dumps(document).encode() + b"\n"
    path.write_bytes(gzip.compress(text) if is_packed else text)
    assert detect_format(path) == expected


def test_only_the_beginning_is_read_so_the_rest_may_be_damaged(tmp_path):
    path = tmp_path / "data"
    path.write_bytes((json.dumps(OWN).encode() + b"\n") * 5_000 + b"\xff\x00 not JSON")
    assert detect_format(path) == "jsonl"


def test_a_first_line_longer_than_the_bytes_read_is_still_recognised(tmp_path):
    path = tmp_path / "data"
    regions = [{"bbox": [1, 2, 3, 4], "phrase": f"phrase {number}"} for number in range(3_000)]
    path.write_text(json.dumps(ODVG | {"grounding": {"caption": "", "regions": regions}}))
    assert path.stat().st_size > 64 << 10
    assert detect_format(path) == "odvg"


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"hello", b"{}", b"[[[[", b"\x1f\x8bbroken", b"\x80\x04}."])
def test_a_foreign_file_is_refused_with_every_format_and_the_option_named(tmp_path, content):
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="none of the known formats") as error:
        detect_format(path)
    assert "--format" in str(error.value)
    assert str(path) in str(error.value)
    for name in SOURCES:
        assert f"  {name}: " in str(error.value)


def test_a_file_that_looks_like_two_formats_is_not_guessed(tmp_path):
    path = tmp_path / "data"
    path.write_text(json.dumps(OWN) + "\n")
    table = {"jsonl": SOURCES["jsonl"], "odvg": SOURCES["odvg"], "greedy": "refcli.data.sources.jsonl:SOURCE"}
    with pytest.raises(UsageError, match="several formats") as error:
        detect_format(path, table=table)
    assert "jsonl" in str(error.value) and "greedy" in str(error.value)
    assert "odvg" not in str(error.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        detect_format(tmp_path / "nowhere")
