"""`--out` of predict and demo: only files that refcli wrote are removed, and an interrupted run can be completed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refcli.contracts.prediction import Answer
from refcli.inference import output_folder
from refcli.inference.output_folder import OutputFolder
from refcli.inference.requests import Request
from refcli.weights import locate


@pytest.fixture
def ask(refcli, tmp_path, monkeypatch, random_weights):
    """Run predict in a directory with three images, one expression each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(f"in/{name}.png")

    def call(*arguments: str, inputs: tuple[str, ...] = ("in",)) -> tuple[int, str, str]:
        return refcli("predict", *inputs, "-e", "the cup", "-w", random_weights, "--batch-size", "1", *arguments)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failed(number: int) -> Answer:
    return Answer(str(number), f"{number}.png", "x", 0, 0, (), False, None, "w", "there is no such image")


def test_a_folder_with_files_of_the_user_is_refused_and_they_stay(ask, tmp_path):
    for name in ("masks/00001-person.png", "masks/00002-dog-left.png", "overlays/00001-mine.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("ground truth")
    before = contents(tmp_path / "data")
    for arguments in ([], ["--force"], ["--resume"]):
        code, out, err = ask("--out", "data", *arguments)
        assert (code, out) == (2, "")
        assert "error:" in err
        assert contents(tmp_path / "data") == before
    assert "--resume" in ask("--out", "data")[2]
    assert "--force" in ask("--out", "data")[2]


def test_an_earlier_run_is_refused_without_force_or_resume(ask, tmp_path):
    assert ask("--out", "o")[0] == 0
    before = contents(tmp_path / "o")
    code, out, err = ask("--out", "o")
    assert (code, out) == (2, "")
    assert "not empty" in err
    assert contents(tmp_path / "o") == before


def test_force_removes_the_listed_files_and_nothing_else(ask, tmp_path):
    ask("--out", "o")
    mine = ("notes.txt", "masks/mine.png", "overlays/00077-mine.png", "masks/sub/00000-a-the-cup-0.png")
    for name in mine:
        (tmp_path / "o" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "o" / name).write_text("mine")
    code, out, _ = ask("--out", "o", "--force", inputs=("in/a.png",))
    assert code == 0
    written = contents(tmp_path / "o")
    assert {name: written.pop(name) for name in mine} == dict.fromkeys(mine, b"mine")
    assert sorted(written) == [
        "manifest.jsonl", "masks/00000-a-the-cup-0.png", "overlays/00000-a-the-cup.png", "predictions.jsonl",
    ]  # fmt: skip
    assert written["predictions.jsonl"].decode() == out


def test_a_manifest_that_lists_other_files_removes_none_of_them(ask, tmp_path):
    ask("--out", "o", inputs=("in/a.png",))
    victims = [tmp_path / name for name in ("victim.png", "o/victim.png", "o/thesis.tex", "o/masks/sub/victim.png")]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_text("precious")
    names = ["../victim.png", "masks/../../victim.png", "victim.png", "masks/sub/victim.png", "thesis.tex", 7, None]
    with (tmp_path / "o/manifest.jsonl").open("a") as manifest:
        for name in (*names, str(victims[0]), "masks\\..\\victim.png", "masks/sub"):
            manifest.write(json.dumps({"files": [name]}) + "\n")
    assert ask("--out", "o", "--force", inputs=("in/a.png",))[0] == 0
    assert [victim.read_text() for victim in victims] == ["precious"] * len(victims)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_in_the_folder_are_neither_followed_nor_removed(ask, tmp_path):
    ask("--out", "o")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "o/masks", elsewhere)
    (tmp_path / "o/masks").symlink_to(elsewhere)
    mine = contents(elsewhere)
    assert mine
    code, _, err = ask("--out", "o", "--force")
    assert code == 2
    assert "link" in err
    assert contents(elsewhere) == mine


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_nothing_is_written_through_a_link(ask, tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name in ("predictions.jsonl.partial", "manifest.jsonl", "predictions.jsonl"):
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        (tmp_path / "o").mkdir()
        (tmp_path / "o" / name).symlink_to(tmp_path / "victim")
        assert ask("--out", "o")[0] == 2
        assert ask("--out", "o", "--force")[0] in (2, 5)
        assert ask("--out", "o", "--resume")[0] in (2, 5)
        shutil.rmtree(tmp_path / "o")
        ask("--out", "o")
        (tmp_path / "o" / name).unlink(missing_ok=True)
        (tmp_path / "o" / name).symlink_to(tmp_path / "victim")
        for option in ("--force", "--resume"):
            ask("--out", "o", option)
            assert (tmp_path / "victim").read_text() == "precious"


def test_a_run_killed_at_any_moment_is_completed_without_gaps_or_duplicates(ask, tmp_path):
    inputs = ("in/a.png", "in/b.png")
    code, out, _ = ask("--out", "whole", inputs=inputs)
    assert code == 0
    whole = contents(tmp_path / "whole")
    lines = whole["predictions.jsonl"]
    assert lines.decode() == out
    ends = [0, *(number + 1 for number, byte in enumerate(lines) if byte == ord("\n"))]
    for cut in (0, 1, ends[1] - 1, ends[1], ends[1] + 40, ends[2] - 1, ends[2]):
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "o")
        (tmp_path / "o/predictions.jsonl").unlink()
        (tmp_path / "o/predictions.jsonl.partial").write_bytes(lines[:cut])
        code, out, err = ask("--out", "o", "--resume", inputs=inputs)
        assert code == 0, err
        assert out.encode() == lines[max(end for end in ends if end <= cut) :]
        assert {name: text for name, text in contents(tmp_path / "o").items() if name != "manifest.jsonl"} == {
            name: text for name, text in whole.items() if name != "manifest.jsonl"
        }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_process_killed_while_it_writes_leaves_a_folder_that_can_be_completed(tmp_path):
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        with OutputFolder(tmp_path / "o") as folder:
            folder.begin({"weights": "w"})
            for number in range(10_000):
                folder.add(failed(number), None)
                os.write(done, b".")
        os._exit(0)
    for _ in range(3):
        os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    total = (tmp_path / "o/predictions.jsonl.partial").read_bytes().count(b"\n") + 3
    with OutputFolder(tmp_path / "o", resume=True) as folder:
        folder.begin({"weights": "w"})
        asked = [Request(str(number), f"{number}.png", "x") for number in range(total)]
        for request in folder.unanswered(asked):
            folder.add(failed(int(request.id)), None)
    lines = (tmp_path / "o/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(number) for number in range(total)]
    assert not list((tmp_path / "o").rglob(".*"))


def test_a_finished_run_stays_as_it_is_and_grows_with_its_inputs(ask, tmp_path):
    ask("--out", "o", inputs=("in/a.png", "in/b.png"))
    before = contents(tmp_path / "o")
    code, out, err = ask("--out", "o", "--resume", inputs=("in/a.png", "in/b.png"))
    assert (code, out) == (0, "")
    assert "2 of 2 answers" in err
    assert contents(tmp_path / "o") == before
    code, out, _ = ask("--out", "o", "--resume", inputs=("in/a.png", "in/b.png", "in/c.png"))
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["in/c.png"]
    lines = (tmp_path / "o/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["in/a.png", "in/b.png", "in/c.png"]


@pytest.mark.parametrize(
    ("arguments", "inputs", "message"),
    [
        (["--min-score", "0.5"], ("in/a.png", "in/b.png"), "cannot change min_score"),
        ([], ("in/b.png", "in/a.png"), "request 1 differs from the one"),
        ([], ("in/a.png", "in/c.png"), "request 2 differs from the one"),
        ([], ("in/a.png",), "answered more than the 1 requests"),
        (["-e", "the dog"], ("in/a.png", "in/b.png"), "request 1 differs from the one"),
    ],
)
def test_another_run_cannot_be_resumed_and_nothing_changes(ask, tmp_path, arguments, inputs, message):
    ask("--out", "o", inputs=("in/a.png", "in/b.png"))
    before = contents(tmp_path / "o")
    code, out, err = ask("--out", "o", "--resume", *arguments, inputs=inputs)
    assert (code, out) == (2, "")
    assert message in err
    assert contents(tmp_path / "o") == before


def test_weights_that_were_replaced_cannot_resume(ask, tmp_path, random_weights):
    shutil.copytree(random_weights, tmp_path / "w")
    assert ask("--out", "o", "-w", "w")[0] == 0
    meta = json.loads((tmp_path / "w/meta.json").read_text())
    (tmp_path / "w/meta.json").write_text(json.dumps({**meta, "files": {"model.safetensors": "0" * 64}}))
    code, _, err = ask("--out", "o", "-w", "w", "--resume")
    assert code == 2
    assert "cannot change checksum_of_weights" in err


def test_a_full_disk_leaves_a_run_that_can_be_completed(ask, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    ask("--out", "whole")
    with monkeypatch.context() as full:
        full.setattr(output_folder, "write_atomically", fail)
        code, _, err = ask("--out", "o")
    assert code == 1
    assert "No space left" in err
    assert "--resume" in err
    assert ask("--out", "o", "--resume")[0] == 0
    assert contents(tmp_path / "o").keys() == contents(tmp_path / "whole").keys()


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_new_or_empty_folder_starts_from_the_beginning(ask, tmp_path, option):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.DS_Store").write_text("what file managers leave")
    for name in ("new", "empty"):
        assert ask("--out", name, option)[0] == 0
        assert len((tmp_path / name / "predictions.jsonl").read_text().splitlines()) == 3


def test_failures_of_the_earlier_run_count_when_it_is_completed(ask, tmp_path):
    inputs = ("in/none.png", "in/a.png")
    assert ask("--out", "o", inputs=inputs)[0] == 3
    code, _, err = ask("--out", "o", "--resume", inputs=inputs)
    assert code == 3
    assert "failed: in/none.png" in err


def test_a_damaged_manifest_or_answer_is_a_plain_error(ask, tmp_path):
    ask("--out", "o")
    shutil.copytree(tmp_path / "o", tmp_path / "p")
    (tmp_path / "o/manifest.jsonl").write_text("{}\n")
    lines = (tmp_path / "p/predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "p/predictions.jsonl").write_text(lines[0] + "[1]\n" + "".join(lines[2:]))
    assert ask("--out", "o", "--resume")[0] == 5
    assert ask("--out", "o", "--force")[0] == 5
    code, _, err = ask("--out", "p", "--resume")
    assert code == 5
    assert "predictions.jsonl:2" in err


def test_force_does_not_remove_its_own_inputs(ask, tmp_path):
    ask("--out", "o")
    before = contents(tmp_path / "o")
    for name in ("o/predictions.jsonl", "o/overlays", "o/masks/00000-a-the-cup-0.png", "in/../o/overlays/"):
        code, _, err = ask("--out", "o", "--force", inputs=(name,))
        assert code == 2
        assert "remove this input" in err
        assert contents(tmp_path / "o") == before


def test_a_failing_start_leaves_the_earlier_run_and_no_new_folder(refcli, ask, tmp_path):
    ask("--out", "o")
    before = contents(tmp_path / "o")
    assert refcli("predict", "in", "-e", "x", "-w", "nowhere", "--out", "o", "--force")[0] == 2
    assert contents(tmp_path / "o") == before
    assert refcli("predict", "in", "-e", "x", "-w", "nowhere", "--out", "new")[0] == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert refcli("predict", "in", "-e", "x", "-w", "nowhere", "--out", "empty")[0] == 2
    assert (tmp_path / "empty").is_dir(), "a folder of the user stays"


def test_resume_and_force_need_a_folder_and_exclude_each_other(ask):
    assert ask("--resume")[0] == 2
    assert ask("--force")[0] == 2
    assert ask("--resume", "--force", "--out", "o")[0] == 2


def test_a_second_process_cannot_write_to_the_folder(ask, tmp_path):
    pytest.importorskip("fcntl")
    with OutputFolder(tmp_path / "o"):
        for arguments in ([], ["--resume"], ["--force"]):
            code, out, err = ask("--out", "o", *arguments)
            assert (code, out) == (2, "")
            assert "another process is writing" in err
    assert ask("--out", "o", "--force")[0] == 0


def test_demo_follows_the_same_rules(refcli, tmp_path, monkeypatch, random_weights):
    monkeypatch.setattr(locate, "BUILTIN_PATH", Path(random_weights))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/masks").mkdir(parents=True)
    (tmp_path / "mine/masks/00000-scene-000-x-0.png").write_text("mine")
    for arguments in ([], ["--force"], ["--resume"]):
        assert refcli("demo", "--scenes", "1", "--out", "mine", *arguments)[0] == 2
    assert contents(tmp_path / "mine") == {"masks/00000-scene-000-x-0.png": b"mine"}

    assert "refcli predict 'a b/scenes/scene-000.png'" in refcli("demo", "--scenes", "1", "--out", "a b")[2]
    assert refcli("demo", "--scenes", "1", "--out", "o")[0] == 0
    whole = contents(tmp_path / "o")
    assert refcli("demo", "--scenes", "1", "--out", "o")[0] == 2
    assert refcli("demo", "--scenes", "2", "--out", "o", "--resume")[0] == 2
    assert contents(tmp_path / "o") == whole

    (tmp_path / "o/predictions.jsonl").rename(tmp_path / "o/predictions.jsonl.partial")
    lines = whole["predictions.jsonl"].split(b"\n")
    (tmp_path / "o/predictions.jsonl.partial").write_bytes(lines[0] + b"\n" + lines[1][:30])
    for name in ("contact_sheet.png", "scenes/scene-000.png"):
        (tmp_path / "o" / name).unlink()
    code, _, err = refcli("demo", "--scenes", "1", "--out", "o", "--resume")
    assert code == 0, err
    completed = contents(tmp_path / "o")
    assert completed.pop("manifest.jsonl").startswith(whole["manifest.jsonl"])
    assert completed == {name: content for name, content in whole.items() if name != "manifest.jsonl"}

    (tmp_path / "o/scenes/mine.png").write_text("mine")
    assert refcli("demo", "--scenes", "2", "--seed", "3", "--out", "o", "--force")[0] == 0
    assert (tmp_path / "o/scenes/mine.png").read_text() == "mine"
