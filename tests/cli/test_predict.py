"""`refcli predict`: lines on stdout, messages on stderr, and exit codes for the outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from refcli.cli.app import run
from refcli.weights import locate


@pytest.fixture
def weights(random_weights):
    return random_weights


@pytest.fixture
def images(tmp_path, monkeypatch):
    """The current directory with two images and a broken one."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", (60, 40)), ("b.jpg", (30, 50))):
        Image.new("RGB", size, "white").save(name)
    (tmp_path / "broken.jpg").write_text("no image")
    return tmp_path


@pytest.fixture
def refcli(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refcli", *arguments])
        with pytest.raises(SystemExit) as caught:
            run()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_stdout_is_a_prediction_record(refcli, images, weights):
    code, out, err = refcli("predict", "a.png", "b.jpg", "-e", "the cup", "-e", "le café", "-w", weights)
    answers = records(out)
    assert code == 0
    assert [(answer["image"], answer["expression"]) for answer in answers] == [
        ("a.png", "the cup"), ("a.png", "le café"), ("b.jpg", "the cup"), ("b.jpg", "le café"),
    ]  # fmt: skip
    assert all(answer["schema"] == "refcli.prediction/1" and answer["error"] is None for answer in answers)
    assert [(answer["width"], answer["height"]) for answer in answers] == [(60, 40)] * 2 + [(30, 50)] * 2
    assert all(len(answer["targets"]) == 1 and answer["targets"][0]["mask"]["size"] for answer in answers)
    assert err == ""


def test_some_failures_give_code_3_and_are_listed_and_only_failures_give_code_1(refcli, images, weights):
    code, out, err = refcli("predict", "broken.jpg", "a.png", "-e", "x", "-w", weights)
    assert code == 3
    assert [answer["error"] is None for answer in records(out)] == [False, True]
    assert "failed: broken.jpg" in err
    assert "1 of 2 requests failed" in err
    code, out, _ = refcli("predict", "broken.jpg", "-e", "x", "-w", weights)
    assert code == 1
    assert len(records(out)) == 1


def test_request_lines_come_from_a_file_an_option_or_stdin(refcli, images, weights, monkeypatch):
    first, last = '{"image": "a.png", "expression": "x", "id": 1}', '{"image": "b.jpg", "expression": "y", "id": 2}'
    lines = f"{first}\nbad\n{last}\n"
    (images / "r.jsonl").write_text(lines)
    (images / "r.txt").write_text(lines)
    for arguments in (["r.jsonl"], ["--requests", "r.txt"], ["-"], ["-r", "-"]):
        with (images / "r.txt").open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code, out, err = refcli("predict", *arguments, "-w", weights)
        first, bad, last = records(out)
        assert code == 3
        assert (first["id"], last["id"]) == ("1", "2")
        assert ":2: not a line of JSON" in bad["error"]
        assert ":2: not a line of JSON" in err


def test_no_requests_are_no_failure(refcli, images, weights):
    (images / "r.jsonl").write_text("\n")
    code, out, err = refcli("predict", "r.jsonl", "-w", weights)
    assert (code, out) == (0, "")
    assert "no requests" in err


def test_out_gets_drawings_masks_and_the_same_lines_as_stdout(refcli, images, weights):
    code, out, _ = refcli("predict", "a.png", "b.jpg", "-e", "x", "-w", weights, "--out", "o")
    assert code == 0
    assert (images / "o/predictions.jsonl").read_text() == out
    assert len(list((images / "o/overlays").iterdir())) == 2
    for path, size in zip(sorted((images / "o/masks").iterdir()), [(60, 40), (30, 50)], strict=True):
        with Image.open(path) as mask:
            assert (mask.mode, mask.size) == ("1", size)


def test_the_table_has_a_line_per_target_and_error(refcli, images, weights):
    code, out, _ = refcli("predict", "a.png", "broken.jpg", "-e", "the  cup", "-w", weights, "--format", "table")
    found, error = out.splitlines()
    assert code == 3
    assert found.split()[0] == "found"
    assert found.endswith("a.png  the cup")
    assert error.startswith("error")


def files_in(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_another_tool_are_those_of_convert_answers_also_after_resume_and_force_removes_them(
    refcli, images, weights
):
    shared = ("-e", "the cup", "-w", weights, "--out", "o")
    code, out, err = refcli("predict", "broken.jpg", "a.png", *shared, "--format", "yolo")
    assert code == 3
    assert [answer["error"] is None for answer in records(out)] == [False, True]
    assert "(answers: 1, targets: 1, files: 3)" in err and "left out" not in err
    code, out, _ = refcli("predict", "broken.jpg", "a.png", "b.jpg", *shared, "--format", "yolo", "--resume")
    assert (code, len(records(out))) == (3, 1)
    refcli("convert-answers", "o/predictions.jsonl", "--to", "yolo", "--out", "c")
    assert files_in(images / "o/yolo") == files_in(images / "c")
    assert {"classes.txt", "data.yaml", "labels/a.txt", "labels/b.txt"} == files_in(images / "c").keys()
    code, _, _ = refcli("predict", "a.png", *shared, "--force")
    assert code == 0
    assert not (images / "o/yolo").exists()


def test_files_of_another_tool_replace_no_file_of_the_user(refcli, images, weights):
    shared = ("predict", "a.png", "-e", "the cup", "-w", weights, "--out", "o")
    refcli(*shared)
    (images / "o/coco").mkdir()
    (images / "o/coco/coco.json").write_text("mine")
    code, _, err = refcli(*shared, "--format", "coco", "--resume")
    assert code == 2
    assert "did not write" in err
    assert (images / "o/coco/coco.json").read_text() == "mine"
    assert records((images / "o/predictions.jsonl").read_text())


def test_min_score_drops_targets(refcli, images, weights):
    _, out, _ = refcli("predict", "a.png", "-e", "x", "-w", weights, "--min-score", "1")
    (answer,) = records(out)
    assert answer["no_target"]
    assert answer["targets"] == []


def test_the_builtin_model_warns_once_that_it_knows_synthetic_scenes_only(refcli, images, weights, monkeypatch):
    monkeypatch.setattr(locate, "BUILTIN_PATH", type(locate.BUILTIN_PATH)(weights))
    code, out, err = refcli("predict", "a.png", "b.jpg", "-e", "x")
    assert code == 0
    assert err.count("synthetic scenes only") == 1
    assert {answer["weights"] for answer in records(out)} == {"builtin"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "there is no input"),
        (["a.png"], 2, "no expression"),
        (["a.png", "-e", "x", "--device", "abacus"], 2, "no device"),
        (["a.png", "-e", "x", "--batch-size", "0"], 2, "batch"),
        (["a.png", "-e", "x", "--min-score", "7"], 2, "min-score"),
        (["a.png", "-e", "x", "--format", "xml"], 2, "xml"),
        (["a.png", "-e", "x", "--format", "coco"], 2, "--out"),
        (["a.png", "-e", "x", "--format", "coco", "--out", "o", "--image-url", "u"], 2, "--image-url"),
        (["a.png", "-e", "x", "--weights", "nowhere"], 2, "no weights called 'nowhere'"),
        (["a.png", "-e", "x", "--out", "a.png/o"], 2, "cannot be created"),
    ],
)
def test_mistakes_are_reported_on_stderr_with_a_code_and_leave_stdout_empty(
    refcli, images, weights, arguments, code, message
):
    given = arguments if "--weights" in arguments else [*arguments, "-w", weights]
    actual, out, err = refcli("predict", *given)
    assert actual == code
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def start(*arguments: str, **pipes) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "refcli", *arguments], stderr=subprocess.PIPE, text=True, **pipes)


def test_a_closed_pipe_ends_the_program_quietly(images, weights):
    (images / "r.jsonl").write_text('{"image": "a.png", "expression": "x"}\n' * 20_000)
    process = start("predict", "r.jsonl", "-w", weights, stdout=subprocess.PIPE)
    first = process.stdout.readline()
    process.stdout.close()
    assert json.loads(first)["image"] == "a.png"
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""


def test_a_dialogue_over_pipes_is_answered_line_by_line(images, weights):
    process = start("predict", "-", "-w", weights, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for expression in ("the cup", "the dog"):
        process.stdin.write(json.dumps({"image": "a.png", "expression": expression}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["expression"] == expression
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_ctrl_c_while_waiting_for_lines_ends_with_130(images, weights):
    import signal

    process = start(
        "predict", "-", "-w", weights, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    process.stdin.write('{"image": "a.png", "expression": "x"}\n')
    process.stdin.flush()
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "Traceback" not in process.stderr.read()


def test_help_does_not_load_the_model_code():
    code = "import sys; sys.argv = ['refcli', 'predict', '--help']\n"
    code += "from refcli.cli.app import run\ntry:\n    run()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'numpy'} & sys.modules.keys(), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--expression" in done.stdout


def test_predicting_never_imports_timm(images, weights):
    code = "import sys\nfrom refcli.inference.predictor import Predictor\n"
    code += f"Predictor({weights!r}).predict('a.png', 'x')\nassert 'timm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_random_images_never_break_the_schema(refcli, images, weights):
    random = np.random.default_rng(0)
    for number in range(5):
        width, height = random.integers(1, 400, 2)
        Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).save(f"r{number}.png")
    code, out, _ = refcli("predict", "r?.png", "-e", "anything", "-w", weights)
    assert code == 0
    for answer in records(out):
        left, top, right, bottom = answer["targets"][0]["box"]
        assert 0 <= left <= right <= answer["width"]
        assert 0 <= top <= bottom <= answer["height"]
        assert answer["targets"][0]["mask"]["size"] == [answer["height"], answer["width"]]
