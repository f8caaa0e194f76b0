"""Plain and gzip files are read up to a limit."""

import gzip
import io
import os
from pathlib import Path

import pytest

from refcli.data.reading.streams import open_binary, read_bytes, read_lines, stem
from refcli.errors import DataError, ExitCode


def test_gzip_is_recognised_by_its_bytes_and_not_by_its_name(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(gzip.compress(b"content"))
    (tmp_path / "b.json.gz").write_bytes(b"content")
    assert read_bytes(tmp_path / "a.json") == read_bytes(tmp_path / "b.json.gz") == b"content"


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_refused(tmp_path: Path):
    for name, pack in (("plain", bytes), ("packed.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"x" * 1000))
        assert read_bytes(path, max_bytes=1000) == b"x" * 1000
        with pytest.raises(DataError, match="more than 999 bytes") as caught:
            read_bytes(path, max_bytes=999)
        assert caught.value.where == str(path)
        assert caught.value.exit_code == ExitCode.INTEGRITY


def test_a_gzip_bomb_is_refused_at_the_limit_and_not_after_it_has_filled_memory(tmp_path: Path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(20 << 20)))
    assert path.stat().st_size < 50_000
    with open_binary(path, max_bytes=1 << 20) as stream:
        assert len(stream.read(1 << 19)) == 1 << 19
        with pytest.raises(DataError, match="more than"):
            stream.read()


def test_a_seek_does_not_get_past_the_limit_of_a_gzip_stream(tmp_path: Path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"0123456789" * 10))
    with open_binary(path, max_bytes=100) as stream:
        stream.seek(95)
        assert stream.read(2) == b"56"
        stream.seek(0)
        assert stream.read(2) == b"01"
        with pytest.raises(DataError, match="more than 100 bytes"):
            stream.seek(101)
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0, io.SEEK_END)


@pytest.mark.parametrize("kept", [5, 15, 30])
def test_truncated_gzip_names_the_file(tmp_path: Path, kept: int):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(os.urandom(64))[:kept])
    with pytest.raises(DataError, match="truncated or broken") as caught:
        read_bytes(path)
    assert caught.value.where == str(path)


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("nothing", "no such file"), ("", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(DataError, match=message):
            open_binary(tmp_path / name)


def test_lines_keep_their_numbers_when_blank_ones_are_skipped(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\n   \nfourth \nlast")
    assert list(read_lines(path)) == [(1, "first"), (4, "fourth "), (5, "last")]


def test_a_line_that_is_not_utf8_is_read_as_latin1_and_its_neighbours_are_not(tmp_path: Path):
    path = tmp_path / "lines.txt.gz"
    path.write_bytes(gzip.compress("café".encode() + b"\n" + "café".encode("latin-1")))
    assert list(read_lines(path)) == [(1, "café"), (2, "café")]


def test_a_line_without_end_is_refused(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"short\n" + b"x" * 11)
    lines = read_lines(path, max_line_bytes=10)
    assert next(lines) == (1, "short")
    with pytest.raises(DataError, match="line 2 is longer"):
        next(lines)


def test_the_stem_is_without_gz_and_one_suffix():
    assert stem(Path("a/unc_val.pth.gz")) == stem(Path("unc_val.pth")) == "unc_val"
    assert stem(Path("refs(unc).p")) == "refs(unc)"
