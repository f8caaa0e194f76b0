"""`refcli evaluate` on prediction files, shards, several systems, conventions and comparisons."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from true_answers import true_lines

from refcli.data.sources.synthetic.write import write_synthetic
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split

SPLIT = "synthetic:test"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_synthetic(folder, size=6, splits=["test"])
    return folder


@pytest.fixture(scope="module")
def lines(store) -> list[str]:
    """The truth as lines of a prediction file."""
    return true_lines(store, SPLIT)


@pytest.fixture
def truth(lines, tmp_path) -> Path:
    path = tmp_path / "truth.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.fixture
def half(lines, tmp_path) -> Path:
    """Every other answer of the truth, and one with an unknown id."""
    path = tmp_path / "half.jsonl"
    path.write_text("\n".join([*lines[::2], lines[0].replace('"id": "', '"id": "else/')]))
    return path


@pytest.fixture
def evaluate(refcli, store):
    """Run `refcli evaluate` on the split, unless `data` is False: (exit code, stdout, stderr)."""

    def run(*arguments: object, data: bool = True) -> tuple[int, str, str]:
        return refcli("evaluate", *(("--data", store, "--split", SPLIT) if data else ()), *arguments)

    return run


def test_a_gzipped_prediction_file_is_scored_without_a_model(evaluate, truth, lines):
    code, out, err = evaluate("--predictions", truth, "--json", "--fail-under", "acc50=1", "--fail-under", "giou=1")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["weights"] == str(truth)
    assert document["precision"] is None
    assert document["splits"][SPLIT]["overall"]["count"] == len(lines)
    assert document["metrics"]["synthetic/test/mask_oiou"] == 1


def test_missing_and_unknown_lines_end_with_code_3_and_are_reported(evaluate, half, lines):
    code, out, err = evaluate("--predictions", half, "--json")
    document = json.loads(out)
    missing = len(lines) - len(lines[::2])
    assert code == 3
    assert len(document["splits"][SPLIT]["failures"]) == missing
    assert document["problems"]["half.jsonl"]["unknown id"]["count"] == 1
    assert f"{missing} of {len(lines)} samples of {SPLIT} failed and are in no metric" in err
    assert "1 lines of half.jsonl were rejected: unknown id" in err
    code, out, err = evaluate("--predictions", half, "--json", "--missing", "wrong")
    assert code == 3  # for the unknown id
    assert json.loads(out)["splits"][SPLIT]["overall"]["count"] == len(lines)
    assert json.loads(out)["splits"][SPLIT]["counted_as_wrong"] == missing
    assert f"{missing} of {len(lines)} samples of {SPLIT} have no answer and count as wrong" in err


def test_an_empty_prediction_file_answers_nothing(evaluate, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert evaluate("--predictions", tmp_path / "empty.jsonl", "--json")[0] == 1


def test_shards_are_merged_to_what_one_run_writes(evaluate, half, tmp_path):
    arguments = ("--predictions", half, "--convention", "all", "--missing", "wrong", "--json")
    evaluate(*arguments, "--out", tmp_path / "whole")
    folders = [tmp_path / f"part-{number}" for number in (3, 1, 2)]
    for folder in folders:
        evaluate(*arguments, "--out", folder, "--shard", f"{folder.name[-1]}/3")
    code, out, _ = evaluate("--merge", *folders, "--json", "--out", tmp_path / "merged", data=False)
    assert code == 3
    merged, whole = json.loads(out), json.loads((tmp_path / "whole/summary.json").read_text())
    assert merged == json.loads((tmp_path / "merged/summary.json").read_text())
    for document in (merged, whole):
        del document["splits"][SPLIT]["seconds"]
    assert merged == whole
    files = [folder / "per_sample.parquet" for folder in folders]
    assert evaluate("--merge", *files[:2], data=False)[0] == 5


def test_rejected_lines_are_counted_equally_in_shards_and_in_one_run(evaluate, lines, tmp_path):
    wrong = [line.replace('"width": ', '"width": 9') for line in lines]
    others = [lines[0], "no JSON", lines[0].replace('"id": "', '"id": "else/')]
    (tmp_path / "bad.jsonl").write_text("\n".join([*reversed(wrong[1:]), *others]))
    asked = ("--predictions", tmp_path / "bad.jsonl", "--json")
    whole = json.loads(evaluate(*asked)[1])["problems"]
    folders = [tmp_path / str(number) for number in (2, 3, 1)]
    for folder in folders:
        evaluate(*asked, "--out", folder, "--shard", f"{folder.name}/3")
    merged = json.loads(evaluate("--merge", *folders, "--json", data=False)[1])["problems"]
    assert merged == whole
    assert {sort: one["count"] for sort, one in whole["bad.jsonl"].items()} == {
        "wrong size": len(wrong) - 1, "not a prediction": 1, "unknown id": 1,
    }  # fmt: skip


def test_conventions_are_side_by_side_and_explained(evaluate, truth):
    code, out, _ = evaluate("--predictions", truth, "--convention", "lavt480", "--convention", "rela480")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["convention"][:3] == ["acc50", "mask_miou", "mask_oiou"]
    assert rows["lavt480"][:3] == ["-", "100.0", "100.0"]
    document = json.loads(evaluate("--predictions", truth, "--convention", "lavt480", "--json")[1])
    assert "480 x 480" in document["conventions"]["lavt480"]["differs"]
    assert document["metrics"]["synthetic/test/lavt480/mask_miou"] == 1
    assert evaluate("--predictions", truth, "--convention", "lavt480", "--fail-under", "lavt480/mask_miou=1")[0] == 0


def test_several_systems_give_one_table_and_a_folder_each(evaluate, truth, half, tmp_path):
    code, out, _ = evaluate("--predictions", truth, "--predictions", half, "--out", tmp_path / "out")
    assert code == 3
    assert [line.split()[:2] for line in out.splitlines() if line] == [
        ["split", "system"], [SPLIT, str(truth)], [SPLIT, str(half)],
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-truth.jsonl.gz", "2-half.jsonl"]
    _, out, _ = evaluate("--predictions", truth, "--predictions", half, "--convention", "lavt480")
    rows = [line.split() for line in out.splitlines()]
    assert [SPLIT, str(half), "lavt480", "-", "100.0", "100.0"] in [row[:6] for row in rows]
    document = json.loads(evaluate("--predictions", truth, "--predictions", half, "--json")[1])
    assert document["schema"] == "refcli.evaluations/1"
    assert [one["weights"] for one in document["runs"]] == [str(truth), str(half)]


def test_boxes_that_are_the_tight_boxes_of_masks_are_marked(evaluate, truth, lines, tmp_path):
    (tmp_path / "masks.jsonl").write_text("\n".join(lines).replace('"box_source": "head"', '"box_source": "mask"'))
    asked = ("--predictions", tmp_path / "masks.jsonl")
    assert "from mask: 100.0 % of the answered boxes" in evaluate(*asked, "--report", "--out", tmp_path / "out")[1]
    assert "from mask: 100.0 %" in (tmp_path / "out/report.html").read_text()
    assert json.loads(evaluate(*asked, "--json")[1])["splits"][SPLIT]["boxes_from_masks"] == 1
    assert "from mask" not in evaluate("--predictions", truth)[1]


def test_a_run_is_compared_with_another(evaluate, truth, half, tmp_path):
    evaluate("--predictions", half, "--missing", "wrong", "--out", tmp_path / "half")
    code, out, _ = evaluate("--predictions", truth, "--compare", tmp_path / "half")
    assert code == 0
    row = next(line.split() for line in out.splitlines() if line.startswith("acc50 "))
    assert row[1] == "100.00"
    assert float(row[3]) == pytest.approx(100 - float(row[2]), abs=0.01)
    document = json.loads(evaluate("--predictions", truth, "--compare", tmp_path / "half", "--json")[1])
    difference = document["comparison"][SPLIT]["metrics"]["acc50"]
    assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]


@pytest.mark.parametrize(
    ("arguments", "data", "code", "message"),
    [
        (["--predictions", "nowhere.jsonl"], True, 5, "cannot be read"),
        (["--predictions", "x", "--convention", "lavt"], True, 2, "did you mean 'lavt480'"),
        (["--predictions", "x", "--shard", "3/2"], True, 2, "1 <= I <= N"),
        (["--predictions", "x", "--compare", "nowhere"], True, 5, "not a per-sample file"),
        (["--predictions", "x", "--device", "cpu"], True, 2, "this has no effect here"),
        (["--merge", "folder", "--missing", "wrong"], False, 2, "--missing"),
        (["--out", __file__], True, 2, "the output folder, or one above it, is a file"),
        (["--out", f"{__file__}/below"], True, 2, "the output folder, or one above it, is a file"),
        (["folder"], True, 2, "folders are for --merge"),
        (["--merge", "folder"], True, 2, "--merge only joins scored parts"),
        (["--merge"], False, 2, "name every part once"),
        (["--predictions", "x"], False, 2, "--data"),
    ],
)
def test_mistakes_are_reported(evaluate, arguments, data, code, message):
    actual, out, err = evaluate(*arguments, data=data)
    assert (actual, out) == (code, "")
    assert message in err


def test_the_last_system_is_found_before_the_first_is_scored(evaluate, truth, tmp_path):
    for option, missing, code in (
        ("--predictions", tmp_path / "none.jsonl", 5),
        ("--predictions", tmp_path, 5),
        ("--weights", "none", 2),
    ):
        assert evaluate("--predictions", truth, option, missing, "--out", tmp_path / "out")[0] == code
        assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written_are_an_expected_error(evaluate, truth, tmp_path, monkeypatch):
    def write_run(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refcli.evaluation.results.write_run", write_run)
    code, out, err = evaluate("--predictions", truth, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "the results cannot be written" in err


def test_runs_with_other_score_thresholds_are_not_compared(evaluate, truth, tmp_path):
    evaluate("--predictions", truth, "--out", tmp_path / "run", "--score-threshold", "0.5")
    code, out, err = evaluate("--predictions", truth, "--compare", tmp_path / "run")
    assert (code, out) == (5, "")
    assert "--score-threshold 0.5" in err


def test_published_results_are_beside_a_run_on_the_same_split(refcli, tmp_path, store):
    split = Store(store).split(SPLIT)
    real = [replace(split[index], dataset="refcoco_unc", split="val") for index in range(3)]
    write_manifest(tmp_path / "s", [write_split(tmp_path / "s", "refcoco_unc", "val", real)])
    (tmp_path / "none.jsonl").write_text("")
    arguments = ("--data", tmp_path / "s", "--split", "refcoco_unc:val", "--predictions", tmp_path / "none.jsonl")
    _, out, _ = refcli("evaluate", *arguments, "--missing", "wrong")
    assert "published on refcoco_unc:val; the published split has 10834, this run scored 3" in out
    assert "to score this run by their conventions: --convention oneref384 " in out
    rows = [line.split() for line in out.splitlines()]
    assert ["acc50", "OneRef-B", "single", "oneref384", "88.75"] in rows
    assert ["acc50", "this", "run", "original", "0.00"] in rows


@pytest.fixture
def texts(store, tmp_path) -> Path:
    """Text answers in the format of Qwen3-VL, of which the first cannot be parsed."""
    path = tmp_path / "texts.jsonl"
    rows = Store(store).split(SPLIT)
    answers = ["It is there.", *['[{"bbox_2d": [0, 0, 500, 500]}]'] * (len(rows) - 1)]
    records = [{"id": rows[at].id, "text": text} for at, text in enumerate(answers)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_text_answers_are_scored_and_converted_to_lines_that_score_alike(evaluate, texts, tmp_path):
    out = tmp_path / "lines.jsonl"
    declared = ("--predictions", texts, "--answers-format", "qwen3-vl")
    code, printed, err = evaluate(*declared)
    assert (code, "parse failures: 1 of" in printed, "parse failure: synthetic/test/" in err) == (0, True, True)
    metrics = json.loads(evaluate(*declared, "--json")[1])["metrics"]
    assert evaluate(*declared, "--convert-only", out)[0] == 0
    converted = json.loads(evaluate("--predictions", out, "--json")[1])
    assert converted["metrics"] == metrics
    assert converted["splits"][SPLIT]["parse_failures"]["count"] == 1
    assert evaluate(*declared, "--convert-only", out)[0] == 2, "the file exists"
    with texts.open("a") as file:
        file.write('{"id": "another", "text": "[]"}\n')
    assert evaluate(*declared, "--convert-only", out, "--force")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("--answers-format", "qwen3-vl"), "--answers-format"),
        (("--answers-format", "qwen3-vl", "--convert-only", "x.jsonl"), "--convert-only"),
        (("--predictions", "texts", "--answers-format", "qwen3-vl", "--convert-only", "x", "--limit", "3"), "--limit"),
        (("--predictions", "texts", "--convert-only", "x.jsonl"), "--convert-only"),
        (("--predictions", "texts", "--answers-format", "humanref", "--split", "other:test"), "--split"),
    ],
)
def test_options_without_effect_on_the_answers_are_refused(evaluate, texts, arguments, place):
    code, _, err = evaluate(*(texts if argument == "texts" else argument for argument in arguments))
    assert (code, f"where: {place}" in err) == (2, True)
