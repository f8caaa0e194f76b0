"""evaluate --out keeps the files in a folder; --force replaces an earlier evaluation and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from true_answers import true_lines

from refcli.data.sources.synthetic.write import write_synthetic

OWN = ["per_sample.parquet", "report.html", "summary.json"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_synthetic(folder, size=2, splits=["test"])
    return folder


@pytest.fixture
def evaluate(refcli, store, tmp_path):
    """Score the truth into a folder."""
    (tmp_path / "truth.jsonl").write_text("\n".join(true_lines(store, "synthetic:test")))

    def run(*arguments: object) -> tuple[int, str, str]:
        asked = ("evaluate", "--data", store, "--split", "synthetic:test", "--predictions", tmp_path / "truth.jsonl")
        return refcli(*asked, *arguments)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["notes.txt", "summary.json", "report.html", "per_sample.parquet"])
def test_a_folder_that_is_not_empty_is_left_unchanged(evaluate, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    code, _, err = evaluate("--out", out)
    assert code == 2
    assert "is not empty" in err
    assert "choose another --out" in err
    assert contents(out) == {name: b"mine"}


def test_files_of_file_managers_are_ignored(evaluate, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("x")
    assert evaluate("--out", out)[0] == 0


@pytest.mark.parametrize("name", ["summary.json", "report.html", "per_sample.parquet"])
def test_force_does_not_replace_files_that_no_evaluation_lists(evaluate, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    code, _, err = evaluate("--out", out, "--force", "--report")
    assert code == 2
    assert f"{name} is not replaced" in err
    assert contents(out) == {name: b"mine"}


def test_force_writes_beside_other_files(evaluate, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert evaluate("--out", out, "--force")[0] == 0
    assert contents(out)["notes.txt"] == b"mine"


def test_an_earlier_evaluation_is_replaced_with_force_only(evaluate, tmp_path):
    out = tmp_path / "out"
    assert evaluate("--out", out, "--report", "--cases", "0")[0] == 0
    assert sorted(contents(out)) == json.loads((out / "summary.json").read_text())["files"] == OWN
    before = contents(out)
    code, _, err = evaluate("--out", out)
    assert code == 2
    assert "replace the evaluation with --force" in err
    assert contents(out) == before
    (out / "notes.txt").write_text("mine")
    assert evaluate("--out", out, "--force")[0] == 0
    assert sorted(contents(out)) == ["notes.txt", "per_sample.parquet", "summary.json"]


def test_a_foreign_page_beside_an_evaluation_stays(evaluate, refcli, tmp_path):
    out = tmp_path / "out"
    evaluate("--out", out)
    (out / "report.html").write_text("mine")
    for arguments in (("evaluate", "--merge", out, "--report"),):
        code, _, err = refcli(*arguments)
        assert code == 2
        assert "report.html is not replaced" in err
    assert evaluate("--out", out, "--force", "--report")[0] == 2
    assert (out / "report.html").read_text() == "mine"


def test_the_page_of_a_merged_run_is_written_again(evaluate, refcli, tmp_path):
    out = tmp_path / "out"
    evaluate("--out", out)
    for _ in range(2):
        code, _, err = refcli("evaluate", "--merge", out, "--report")
        assert code == 0, err
    assert json.loads((out / "summary.json").read_text())["files"] == OWN


@pytest.mark.parametrize("name", ["../victim", "/victim", "sub/victim", "victim"])
def test_other_names_in_a_summary_are_ignored(evaluate, tmp_path, name):
    out = tmp_path / "out"
    evaluate("--out", out)
    victim = (tmp_path / "out" / name) if not name.startswith("/") else tmp_path / "victim"
    victim.parent.mkdir(exist_ok=True)
    victim.write_text("mine")
    summary = json.loads((out / "summary.json").read_text())
    summary["files"] += [name, str(victim)]
    (out / "summary.json").write_text(json.dumps(summary))
    assert evaluate("--out", out, "--force")[0] == 0
    assert victim.read_text() == "mine"


def test_no_link_is_followed(evaluate, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim.html"
    evaluate("--out", out, "--report", "--cases", "0")
    victim.write_text("mine")
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(victim)
    assert evaluate("--out", out, "--force", "--report", "--cases", "0")[0] == 0
    assert victim.read_text() == "mine"
    assert not (out / "report.html").is_symlink()


def test_several_systems_are_replaced_in_the_same_way(evaluate, tmp_path):
    out, other = tmp_path / "out", tmp_path / "truth.jsonl"
    asked = ("--predictions", other, "--out", out)
    assert evaluate(*asked)[0] == 0
    assert evaluate(*asked)[0] == 2
    assert evaluate(*asked, "--force")[0] == 0
    (out / "1-truth.jsonl/report.html").write_text("mine")
    assert evaluate(*asked, "--force", "--report")[0] == 2
    assert (out / "1-truth.jsonl/report.html").read_text() == "mine"


def test_force_without_a_folder_is_a_usage_error(evaluate):
    code, _, err = evaluate("--force")
    assert code == 2
    assert "give --out DIR" in err


def test_a_folder_behind_a_broken_link_is_refused_before_anything_is_scored(evaluate, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    code, out, err = evaluate("--out", tmp_path / "out")

    assert (code, out) == (2, "")
    assert "the output folder, or one above it, is a file" in err
