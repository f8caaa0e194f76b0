"""JSON files are read in an expected shape, and errors name the place in the document."""

import gzip
import math
from pathlib import Path

import msgspec
import pytest

from refcli.data.reading.json_files import convert, parse_json, read_json
from refcli.errors import DataError


class ImageRow(msgspec.Struct):
    id: int
    height: int
    name: str = ""


def test_unwanted_fields_are_skipped_and_numbers_may_be_strings(tmp_path: Path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf[{"id": 3, "height": "480", "licence": {"a": [1, {}]}}]'))
    assert read_json(path, list[ImageRow]) == [ImageRow(3, 480)]


def test_an_error_names_the_file_and_the_place_in_the_document(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"id": 3, "height": 1}, {"id": "three", "height": 1}]')
    with pytest.raises(DataError, match=r"\$\[1\]\.id") as caught:
        read_json(path, list[ImageRow])
    assert caught.value.where == str(path)


@pytest.mark.parametrize("data", [b"", b'[{"id": 1', b"{'id': 1}", b"[Nan]", b'["\xff\xfe"]', b"[1] [2]"])
def test_invalid_json_is_refused(data: bytes):
    with pytest.raises(DataError, match="not valid JSON"):
        parse_json(data, object, where="x.json")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("kind", [object, list[ImageRow], msgspec.Raw, dict[str, msgspec.Raw]])
def test_json_nested_a_hundred_thousand_deep_is_refused(opening: bytes, kind: type):
    with pytest.raises(DataError):
        parse_json(opening * 100_000, kind, where="x.json")


def test_deep_json_in_a_skipped_field_is_refused():
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(DataError, match="too deeply") as caught:
        parse_json(b'{"id": 1, "height": 2, "other": ' + deep + b"}", ImageRow, where="x.json")
    assert caught.value.where == "x.json"


def test_plain_data_is_checked_like_json():
    assert convert([{"id": "1", "height": 2, "more": None}], list[ImageRow], where="x.p") == [ImageRow(1, 2)]
    with pytest.raises(DataError, match=r"\$\[0\]\.height") as caught:
        convert([{"id": 1, "height": "tall"}], list[ImageRow], where="x.p")
    assert caught.value.where == "x.p"


def test_the_extensions_of_pythons_json_module_are_read():
    text = b'{"NaN": [NaN, -Infinity, 1.5], "a": "NaN\\" Infinity", "half": "x\\ud83d y", "pair": "\\ud83d\\ude00"}'
    read = parse_json(text, dict[str, object], where="x.json")
    assert read == {"NaN": ["NaN", "-Infinity", 1.5], "a": 'NaN" Infinity', "half": "x\ufffd y", "pair": "\U0001f600"}
    floats = parse_json(b"[NaN, Infinity]", list[float], where="x.json")
    assert math.isnan(floats[0])
    assert floats[1] == math.inf


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1, "b": 2}'.encode("utf-16-le"), "UTF-16"),
        (b'{"a": 1,\n "b": "caf\xe9"}', r"0xE9 \(line 2, column 11\) is not UTF-8"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b'{"a": [1, 2', "ends in the middle"),
        (b'{"a": nan}', "line 1, column"),
    ],
)
def test_the_reason_why_a_text_is_not_json_is_named_with_its_place(data, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        parse_json(data, object, where="x.json")
    assert ("truncated" in caught.value.hint) == ("middle" in complaint)


def test_a_string_that_never_ends_is_searched_in_linear_time():
    with pytest.raises(DataError):
        parse_json(b'[NaN, "' + b'\\"' * 500_000, object, where="x.json")
