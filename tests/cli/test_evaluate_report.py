"""`refcli evaluate --report`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from true_answers import true_lines

from refcli.data.sources.synthetic.write import write_synthetic

SPLIT = "synthetic:test"
JPEG = "data:image/jpeg"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_synthetic(folder, size=4, splits=["test"])
    return folder


@pytest.fixture(scope="module")
def truth(store, tmp_path_factory) -> Path:
    """The truth as a prediction file."""
    path = tmp_path_factory.mktemp("lines") / "truth.jsonl"
    path.write_text("\n".join(true_lines(store, SPLIT)))
    return path


@pytest.fixture
def evaluate(refcli):
    """Run `refcli evaluate` in this process: (exit code, stdout, stderr)."""
    return partial(refcli, "evaluate")


def test_a_page_of_an_earlier_evaluation_is_removed(evaluate, store, truth, tmp_path):
    asked = ("--data", store, "--split", SPLIT, "--predictions", truth, "--out", tmp_path / "out")
    evaluate(*asked, "--report", "--cases", "0")
    assert (tmp_path / "out" / "report.html").is_file()
    assert evaluate(*asked, "--force")[0] == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_the_page_is_written_beside_the_metrics_and_is_the_same_every_time(evaluate, store, truth, tmp_path):
    asked = ("--data", store, "--split", SPLIT, "--predictions", truth, "--report", "--cases", "2")
    pages = []
    for name in ("one", "two"):
        code, _, err = evaluate(*asked, "--out", tmp_path / name)
        page = tmp_path / name / "report.html"
        assert (code, err.split()) == (0, ["wrote", str(page)])
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "per_sample.parquet", "report.html", "summary.json",
        ]  # fmt: skip
        pages.append(page.read_text())
    assert pages[0] == pages[1]
    assert pages[0].count(JPEG) == 4


def test_a_model_answers_the_cases_again(evaluate, store, tmp_path):
    code, _, _ = evaluate(
        "--data", store, "--split", SPLIT, "--report", "--cases", "3", "--out", tmp_path, "--limit", "8"
    )
    assert code == 0
    page = (tmp_path / "report.html").read_text()
    assert "Evaluation of builtin" in page
    assert page.count(JPEG) == 6
    assert "no usable answer" not in page


def test_a_finished_run_gets_a_page_without_cases(evaluate, store, truth, tmp_path):
    evaluate("--data", store, "--split", SPLIT, "--predictions", truth, "--out", tmp_path / "run")
    code, _, _ = evaluate("--merge", tmp_path / "run", "--report")
    page = (tmp_path / "run/report.html").read_text()
    assert code == 0
    assert "which holds no answers" in page
    assert JPEG not in page


def test_a_comparison_is_in_the_page_with_the_other_runs_name(evaluate, store, truth, tmp_path):
    evaluate("--data", store, "--split", SPLIT, "--out", tmp_path / "model", "--limit", "8")
    asked = ("--data", store, "--split", SPLIT, "--limit", "8", "--predictions", truth, "--out", tmp_path / "truth")
    code, _, _ = evaluate(*asked, "--report", "--cases", "0", "--compare", tmp_path / "model")
    page = (tmp_path / "truth/report.html").read_text()
    assert code == 0
    assert "Compared with builtin" in page
    assert JPEG not in page


def test_several_systems_have_a_page_each(evaluate, store, truth, tmp_path):
    asked = ("--data", store, "--split", SPLIT, "--predictions", truth, "--predictions", truth)
    assert evaluate(*asked, "--report", "--cases", "1", "--out", tmp_path)[0] == 0
    assert len(list(tmp_path.glob("*/report.html"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "x", "--data", "s", "--report"], "no folder for the page"),
        (["--predictions", "x", "--data", "s", "--cases", "3"], "need --report"),
        (["--merge", "a", "--report", "--out", "o", "--cases", "3"], "no --merge"),
        (["--merge", "a", "b", "--report"], "no folder for the page"),
    ],
)
def test_mistakes_are_reported(evaluate, arguments, message):
    code, out, err = evaluate(*arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
