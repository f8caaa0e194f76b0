"""The manifest and the lines that an earlier run left in an output folder."""

from __future__ import annotations

import json
import shutil

import pytest
from harness import damaged, fuzz, map_bytes, mutated_json_bytes, mutated_lines
from hypothesis import strategies as st

from refcli.answers.jsonl import answer_to_json
from refcli.contracts.prediction import Answer
from refcli.inference.output_folder import OutputFolder
from refcli.inference.output_manifest import OWN_FILE, PARTIAL, PREDICTIONS, SCHEMA
from refcli.inference.requests import Request
from refcli.recipes.predict import PredictSummary

ANSWERS = [Answer(str(n), f"{n}.png", "x", 0, 0, (), False, None, "w", "none") for n in range(2)]
REQUESTS = [Request(answer.id, answer.image, answer.expression) for answer in ANSWERS]
SETTINGS = {"weights": "w", "min_score": None}
HEADER = {"schema": SCHEMA, "settings": SETTINGS, "files": [PREDICTIONS, PARTIAL]}
LISTED = {
    "files": ["overlays/00000-0-x.png", "masks/00000-0-x-0.png", "../victim.png", "mine.txt", "overlays/mine.png"]
}
NAMES = ("mine.txt", "overlays/mine.png", "masks/sub/00000-0-x-0.png")


@pytest.fixture
def folder(tmp_path):
    """A finished run, with files of the user in and beside it."""
    with OutputFolder(tmp_path / "o") as out:
        out.begin(SETTINGS)
        for answer in ANSWERS:
            out.add(answer, None)
    for name in NAMES:
        (tmp_path / "o" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "o" / name).write_text("mine")
    (tmp_path / "victim.png").write_text("mine")
    shutil.copytree(tmp_path / "o", tmp_path / "whole")
    return tmp_path / "o"


def use(folder):
    """Complete the run, then remove it."""
    try:
        with OutputFolder(folder, resume=True) as out:
            out.begin(SETTINGS)
            summary = PredictSummary()
            for request in out.unanswered(REQUESTS, summary.add):
                out.add(ANSWERS[int(request.id)], None)
            assert summary.exit_code >= 0
    finally:
        with OutputFolder(folder, force=True) as out:
            out.check_inputs(["o", "a.png", "\x00"])
            out.begin(SETTINGS)


def check_mine(folder):
    for name in (*NAMES, "../victim.png"):
        assert (folder / name).read_text() == "mine"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert all(OWN_FILE.fullmatch(name) for name in written - {*NAMES, "manifest.jsonl"})


@pytest.mark.parametrize("num_inputs", [60, pytest.param(5_000, marks=pytest.mark.slow)])
def test_any_manifest_and_any_lines_are_read_or_refused_and_files_of_others_stay(folder, num_inputs):
    def read(contents: tuple[bytes, bytes, str]) -> None:
        manifest, lines, name = contents
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "whole", folder)
        (folder / PREDICTIONS).unlink()
        (folder / name).write_bytes(lines)
        (folder / "manifest.jsonl").write_bytes(manifest)
        try:
            use(folder)
        finally:
            check_mine(folder)

    header = json.dumps(HEADER).encode() + b"\n"
    records = [answer_to_json(answer) for answer in ANSWERS]
    lines = b"\n".join([*map_bytes(records), b""])
    manifests = st.one_of(
        mutated_lines([HEADER, LISTED]),
        mutated_json_bytes([LISTED]).map(lambda line: header + line + b"\n"),
        damaged([header]),
        st.just(header),
    )
    answers = st.one_of(mutated_lines(records), damaged([lines]), st.just(lines))
    fuzz(st.tuples(manifests, answers, st.sampled_from([PREDICTIONS, PARTIAL])), read, num_inputs)
