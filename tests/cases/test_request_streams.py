"""Every request, however malformed, gets one line, and every line is valid UTF-8 JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from refcli.errors import LONGEST_SHOWN, UsageError
from refcli.inference.read_ahead import DecodedImage, ReadAhead
from refcli.inference.requests import LineLimits, Request, parse_request_lines, read_request_file, read_requests

GOOD = {"image": "a.png", "expression": "the red circle"}
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def ask(refcli, tmp_path, monkeypatch, random_weights):
    """Run predict on request lines: (exit code, records, stderr); an odd line stands between two good ones."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "white").save("a.png")

    def call(*lines: bytes | dict, options: tuple[str, ...] = ()) -> tuple[int, list[dict], str]:
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in (GOOD, *lines, GOOD)]
        Path("r.jsonl").write_bytes(b"\n".join(raw) + b"\n")
        code, out, err = refcli("predict", "r.jsonl", "-w", random_weights, *options)
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


@pytest.mark.parametrize("line", [b"\x89PNG\x00\x00abcdefghi", b"\xff\xd8\xff\xe0abc\x00", b"\x00" * 9])
def test_no_encoding_is_guessed_for_other_bytes(line):
    (request,) = parse_request_lines([line], "r.jsonl", None)
    assert request.error is not None
    assert "UTF-16" not in request.error


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"image": "a.png", "expression": "the red circle \ud83d"}, None),
        ({"image": "a.png", "expressions": ["x \udc00\udc00"]}, None),
        ({"image": "a.png", "expression": "the red circle", "id": "x\udc00"}, None),
        ({"image": "a.png", "expression": "a\u2028b\x85c\x00d\x1b[31me\x7f"}, None),
        ({"image": "a\ud83d.png", "expression": "x"}, "no file name can have"),
        ({"image": "a\udce9.png", "expression": "x"}, "no such"),
        ({"image": "a\x00.png", "expression": "x"}, "no file name can have"),
        ({"image": "a" * 5000, "expression": "x"}, "too long"),
        ({"image": "a/" * 5000 + "b.png", "expression": "x"}, "too long"),
        ({"image": "data:image/png;base64," + "iVBORw0KGgo" * 3000, "expression": "x"}, "data URI"),
        ({"image": "DATA:image/png,x", "expression": "x"}, "data URI"),
        ({"image": "https://example.org/a.png?size=1", "expression": "x"}, "URL"),
        ({"image": "a.png", "expression": "x", "id": [[1]]}, '"id" must be'),
        ({"image": "a.png", "expression": "x", "id": {"a": "\ud83d"}}, '"id" must be'),
        (b'{"image": "a.png", "expression": "x", "id": ' + b"9" * 5000 + b"}", "not a line of JSON"),
        (b'{"image": "a.png", "expression": "x", "z": ' + b"9" * 5000 + b"}", "(a number of 5,000 digits)"),
        (b'{"image": "a.png/x", "expression": "x"}', "no such image"),
        (b'{"image": "a.png",', "line 1 column 19"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00\x00abc\xffdef", "is it gzip?"),
        (b'{"image": "caf\xe9.png", "expression": "x"}', "not a line of JSON"),
        (b"\x00" * 100, "not a line of JSON"),
    ],
)
def test_an_odd_request_is_answered_and_the_rest_continues(ask, line, error):
    code, (first, odd, last), err = ask(line)
    assert first["error"] is last["error"] is None
    assert code == (0 if error is None else 3)
    if error is None:
        assert odd["error"] is None
    else:
        assert error in odd["error"]
        assert error in err
        assert len(odd["error"]) < 3 * LONGEST_SHOWN
    if isinstance(line, dict) and isinstance(line.get("id", ""), str):
        assert odd["image"] == line["image"]
        assert odd["id"] == line.get("id", "r.jsonl:2#0" if "expressions" in line else "r.jsonl:2")


def test_a_lone_surrogate_in_an_expression_is_read_as_an_unknown_character(ask):
    _, (_, one, _), _ = ask({"image": "a.png", "expression": "the red circle \ud83d"})
    assert one["expression"] == "the red circle \ufffd"


@pytest.mark.skipif(sys.platform == "win32", reason="command lines are Unicode there")
def test_expressions_on_the_command_line_are_utf8_in_every_locale(tmp_path):
    for typed, read in (
        ("caf\udcc3\udca9", "café"),
        ("caf\udce9", "caf\ufffd"),
        ("caf\ud83d", "caf\ufffd"),
        ("\udc00", "\ufffd"),
        ("café 🔴", "café 🔴"),
    ):
        (request,) = read_requests([str(tmp_path / "a.png")], [typed])
        assert request.expression == read


def test_a_line_of_any_length_takes_bounded_memory_and_is_answered(tmp_path):
    limits = LineLimits(line=1000, block=64)
    for length in (5000, 998, 999, 1000, 1001, 1063, 1064, 1065, 1066):
        middle = b"x" * length if length == 5000 else b" " * length + b"{}"
        (tmp_path / "r.jsonl").write_bytes(b"\n".join([json.dumps(GOOD).encode(), middle, json.dumps(GOOD).encode()]))
        first, odd, last = read_request_file(str(tmp_path / "r.jsonl"), limits=limits)
        assert first.error is last.error is None
        assert [request.id.rpartition(":")[2] for request in (first, odd, last)] == ["1", "2", "3"]
        assert ("longer than" in odd.error) == (len(middle + b"\n") > 1000)


def test_an_endless_line_stops_the_reading(monkeypatch, tmp_path):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    monkeypatch.setattr("builtins.open", lambda *_, **__: io.BufferedReader(Endless()))
    with pytest.raises(UsageError, match="does not end"):
        list(read_request_file("r.jsonl", limits=LineLimits(line=1 << 10, block=1 << 10, endless=1 << 14)))


def test_no_exception_of_any_kind_ends_a_stream():
    def decode(source):
        if source == "odd":
            raise RuntimeError("decoder " + "x" * 10_000)
        return DecodedImage(None, None)

    asked = [Request(name, name, "x") for name in ("a", "odd", "b")]
    (batch,) = ReadAhead(decode, batch_size=8).batches(asked)
    assert [item.error is None for item in batch] == [True, False, True]
    assert "RuntimeError" in batch[1].error
    assert len(batch[1].error) < 2 * LONGEST_SHOWN


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_names_that_are_not_utf8_are_answered_on_stdout_and_in_files(refcli, ask, tmp_path, random_weights):
    Path("photos").mkdir()
    asked = ("predict", "photos", "-e", os.fsdecode(b"x\xff"), "-w", random_weights)
    for name in (NOT_UTF8, "z.png"):
        Image.new("RGB", (30, 20)).save(Path("photos") / name)
    for options in ((), ("--out", "o"), ("--format", "table")):
        code, out, _ = refcli(*asked, *options)
        assert code == 0
        assert len(out.splitlines()) == 2
        out.encode("utf-8")
    lines = [json.loads(line) for line in (tmp_path / "o/predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["image"] for line in lines] == [f"photos/{NOT_UTF8}", "photos/z.png"]
    assert {line["expression"] for line in lines} == {"x\ufffd"}
    (tmp_path / "again.jsonl").write_text((tmp_path / "o/predictions.jsonl").read_text("utf-8"))
    assert refcli("predict", "again.jsonl", "-w", random_weights)[0] == 0, "answers are requests"
    assert refcli(*asked, "--out", "o", "--resume")[0] == 0


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-16"])
def test_stdout_is_utf8_whatever_the_terminal_is(tmp_path, monkeypatch, random_weights, encoding):
    from refcli.cli.app import run

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "white").save("a.png")
    for options in ([], ["--format", "table"]):
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        arguments = ["a.png", "☕.png", "-e", "the 🔴 café", "-w", random_weights, *options]
        monkeypatch.setattr(sys, "argv", ["refcli", "predict", *arguments])
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 3
        text = stdout.buffer.getvalue().decode("utf-8")
        assert "the 🔴 café" in text
        assert "failed: " in stderr.buffer.getvalue().decode(encoding)
    assert "☕.png" in text


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not have")
def test_names_in_a_table_neither_fake_a_row_nor_control_the_terminal(refcli, ask, random_weights):
    faked = "x.png\nfound       99%     0     0    10    10  victim.png"
    for name in (faked, "y\x1b[31mred.png", "z\x9b2J\u202e.png", "\r\x08.png", "n" * 150 + ".png"):
        Image.new("RGB", (30, 20)).save(name)
        code, out, _ = refcli("predict", name, "-e", "a\x1b[2Jb\nc\u2029d", "-w", random_weights, "-f", "table")
        assert code == 0
        assert len(out.splitlines()) == 1
        assert out.removesuffix("\n").isprintable()
        code, out, err = refcli("predict", "no\x1b\n.png", "-e", "x", "-w", random_weights, "-f", "table")
        assert code == 1
        assert len(out.splitlines()) == 1
        assert (out + err).replace("\n", "").isprintable()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs bash and /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("<&-", 0),
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">&-", 2),
        (">/dev/full", 1),
        ("<&- >&- 2>&-", 2),
    ],
)
def test_closed_and_full_streams_end_in_an_answer_or_one_sentence(ask, random_weights, tmp_path, redirection, code):
    command = f"exec {sys.executable} -m refcli predict a.png -e x -w {random_weights} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    if code == 0:
        assert json.loads(done.stdout)["error"] is None
    elif "2>" not in redirection:
        assert done.stderr.count("error:") == 1


def test_a_closed_stdin_is_reported_in_one_sentence(refcli, random_weights, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for arguments in (["-"], ["-r", "-"]):
        code, out, err = refcli("predict", *arguments, "-w", random_weights)
        assert (code, out) == (2, "")
        assert "stdin is closed" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    assert refcli("predict", "-", "-w", random_weights)[0] == 2


def test_a_stdout_that_cannot_be_written_is_reported_in_one_sentence(refcli, ask, random_weights, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        for stdout, code, message in ((full, 1, "No space left"), (None, 2, "stdout is closed")):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "stdout", stdout)
                result, _, err = refcli("predict", "a.png", "-e", "x", "-w", random_weights)
            assert (result, err.count("error:")) == (code, 1)
            assert message in err
