"""Prediction files of other systems: read in one declared notation, joined to the store, scored and converted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from releases import RELEASES

from refcli.answers.formats import ANSWER_FORMATS, REFCLI, AnswerNotation
from refcli.answers.jsonl import answer_to_json
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer
from refcli.data.preparation.plan import plan_named
from refcli.data.store.read import Store, StoreSplit
from refcli.errors import DataError, UsageError
from refcli.evaluation.conversion import write_as_lines
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.cases import choose_cases, find_answers
from refcli.evaluation.report.document import report_split
from refcli.evaluation.run import Run, merge_runs, read_run, write_run
from refcli.geometry.masks import polygons_to_rle
from refcli.recipes.prepare_data import Preparation, prepare
from refcli.text.vlm_text import INPUT_PIXELS

NAME = "refcoco_unc:test"
OTHERS = [name for name in ANSWER_FORMATS if name != REFCLI]
PER_MILLE = (1, 1.6, 30, 32)
BINS = (1, 1.6, 30.03, 32.03)
INPUT = (1, 2, 30, 40)
PIXELS = (10, 20, 60, 60)
BOXES = {
    **dict.fromkeys(
        ("qwen3-vl", "qwen2-vl", "qwen-vl", "internvl", "cogvlm", "ferret", "gemini", "xiaomi-lens"), PER_MILLE
    ),
    **dict.fromkeys(("deepseek-vl2", "rex-omni"), BINS),
    **dict.fromkeys(("qwen2.5-vl", "vlm-r1"), INPUT),
    **dict.fromkeys(
        ("coco-results", "grec", "d-cube", "ref-l4", "gseval", "humanref", "finecops", "finecops-npy"), PIXELS
    ),
    "shikra": (1, -8, 30, 30),  # 10 pixels of padding above and below the image
    "kosmos-2": (39.06, 3.75, 98.44, 66.25),
    "paligemma": (0.98, 1.56, 29.3, 31.25),
    "florence-2": (1.05, 1.64, 30.05, 32.04),
    "florence-2-dict": (10, 20, 60, 70),
    "moondream": (10, 16, 30, 32),
}
"""The box of each format's example in an image of 100 x 80, by hand; `INPUT` for an input of 1000 x 800."""


def example(own_id: str, *boxes: tuple[float, float, float, float]) -> Example:
    regions = tuple(map(Region, boxes))
    return Example(f"refcoco_unc/{own_id}", "refcoco_unc", "test", "a.jpg", "a", 100, 80, "the cup", regions)


@pytest.fixture
def split(make_store) -> StoreSplit:
    """A sample with an id of each form, another with a target, and one without."""
    examples = [example("3/7", PIXELS), example("7", PIXELS), example("7/3", PIXELS), example("8", PIXELS)]
    return Store(make_store([*examples, example("9")])).split(NAME)


@pytest.fixture
def write(tmp_path):
    """Write records as JSON lines, or as one list."""

    def to_file(records: list[object], *, as_list: bool = False) -> Path:
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps(records) if as_list else "".join(json.dumps(one) + "\n" for one in records))
        return path

    return to_file


def score(path: Path, split: StoreSplit, name: str, **declared: str) -> Run:
    return score_file(path, {NAME: split}, notation=AnswerNotation.declare(name, **declared))


def answers(path: Path, split: StoreSplit, name: str, **declared: str) -> dict[str, dict]:
    """The converted lines by the sample's own id."""
    out = path.with_suffix(".converted")
    write_as_lines(path, {NAME: split}, out, AnswerNotation.declare(name, **declared))
    return {line["id"].partition("/")[2]: line for line in map(json.loads, out.read_text().splitlines())}


def boxes(line: dict) -> list[list[float]]:
    return [target["box"] for target in line["targets"]]


def npy(records: list[object]) -> bytes:
    """What numpy.save writes."""
    file = io.BytesIO()
    np.save(file, np.array(records, dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("name", OTHERS)
def test_the_example_of_every_format_gives_the_box_that_it_states(name, split, write):
    form = ANSWER_FORMATS[name]
    path = write([json.loads(form.example)], as_list=name in ("coco-results", "grec", "d-cube", "ref-l4"))
    if name == "finecops-npy":
        path.write_bytes(npy([json.loads(form.example)]))
    declared = {"input_size": "1000x800"} if form.coordinates == INPUT_PIXELS else {}
    found = [line for line in answers(path, split, name, **declared).values() if line["targets"]]
    assert len(found) == 1
    assert boxes(found[0]) == [list(BOXES[name])]
    assert (
        found[0]["id"].partition("/")[2]
        == {"refcoco_unc/3/7": "3/7", 7: "7/3" if name == "d-cube" else "7"}[
            next(value for key, value in json.loads(form.example).items() if key in ("id", "idx", "image_id", "img_id"))
        ]
    )


def text(own_id: str, answer: object, **more: object) -> dict[str, object]:
    return {"id": f"refcoco_unc/{own_id}", "text": answer, **more}


def test_a_failure_is_wrong_and_a_refusal_is_no_target_and_the_conversion_scores_alike(split, write, tmp_path):
    right = '[{"bbox_2d": [100, 250, 600, 750]}]'
    path = write([
        text("3/7", right),
        text("7", "I see it."),
        text("7/3", '```json\n[{"bbox_2d": [100, 25'),
        text("8", "There is no cup in the image."),
        text("9", "Here it is!"),
    ])  # fmt: skip
    run = score(path, split, "qwen3-vl")
    report = report_split(run.splits[0])
    assert [sample for sample, _ in report.parse_failures] == ["refcoco_unc/7", "refcoco_unc/7/3", "refcoco_unc/9"]
    assert (report.parse_failure_share, report.failures, run.problems) == (0.6, (), {})
    metrics = report.overall.metrics
    assert (metrics["acc50"], metrics["t_acc"], metrics["n_acc"]) == (1 / 4, 1 / 4, 0.0)
    assert any("no scores" in warning for warning in run.warnings)
    out = tmp_path / "converted.jsonl"
    done = write_as_lines(path, {NAME: split}, out, AnswerNotation.declare("qwen3-vl"))
    assert (done.num_answers, done.num_targets, done.num_parse_failures, done.exit_code.value) == (5, 1, 3, 0)
    again = score_file(out, {NAME: split})
    assert str(again.splits[0].table.to_pydict()) == str(run.splits[0].table.to_pydict())
    assert report_split(again.splits[0]).parse_failures == report.parse_failures


def test_sizes_come_from_the_line_then_from_the_option_or_the_store(split, write):
    box = '{"bbox_2d": [10, 20, 30, 40]}'
    path = write([
        text("3/7", box, input_width=200, input_height=160),
        text("7", box),
        text("8", box, width=90, height=80),
    ])  # fmt: skip
    found = answers(path, split, "qwen2.5-vl", input_size="50x40")
    assert (boxes(found["3/7"]), boxes(found["7"])) == ([[5, 10, 15, 20]], [[20, 40, 60, 80]])
    assert "8" not in found
    run = score(path, split, "qwen2.5-vl")
    (size_7, size_8) = run.problems["theirs.json"]["wrong size"].first
    assert "refcoco_unc/7: the size of the model's input is unknown" in size_7
    assert "the image is 90 x 80, but 100 x 80 in the data" in size_8
    # the rule enlarges 100 x 80 to 112 x 84
    assert boxes(answers(path, split, "qwen2.5-vl", input_size="qwen2.5-vl")["7"]) == [[8.93, 19.05, 26.79, 38.1]]


def test_unusable_lines_and_unread_keys_are_reported(split, write):
    bad = [{"text": "[1, 2, 3, 4]"}, text("7", None, error=""), [], text("7", "[1, 2, 3, 4]", beams=3, error=False)]
    run = score(write([*bad, text("8", None, error="out of memory")]), split, "cogvlm")
    assert run.problems["theirs.json"]["not a prediction"].count == 3
    assert any("line key 'beams', once" in warning for warning in run.warnings)
    failures = dict(run.splits[0].failures)
    assert (failures["refcoco_unc/8"], "refcoco_unc/7" in failures) == ("out of memory", False)
    for meaning in ({"normalized": True}, {"bbox_format": "xywh"}):
        with pytest.raises(DataError, match=f"cannot be read: .*{next(iter(meaning))}"):
            score(write([text("7", "[1, 2, 3, 4]", **meaning)]), split, "cogvlm")


@pytest.mark.parametrize(
    ("name", "declared", "numbers", "expected"),
    [
        ("qwen3-vl", {}, [0.1, 0.2, 0.3, 0.4], "within 0..1, but 0..1000 is declared"),
        ("qwen3-vl", {"coordinates": "unit"}, [100, 200, 300, 400], "1 of 1 boxes lie outside 0..1, which is declared"),
        ("qwen3-vl", {"coordinates": "pixels"}, [200, 100, 300, 400], "1 of them outside their image"),
        ("qwen3-vl", {}, [100, 200, 300, 400], None),
        ("qwen2.5-vl", {"input_size": "56x56"}, [200, 100, 300, 400], "1 of them outside their image"),
    ],
)
def test_other_units_than_the_declared_ones_give_a_warning(split, write, name, declared, numbers, expected):
    run = score(write([text("7", str(numbers))]), split, name, **declared)
    warnings = [warning for warning in run.warnings if "boxes lie" in warning]
    assert [expected in warning for warning in warnings] == ([True] if expected else [])


def test_results_are_grouped_by_sample_and_a_sample_without_an_entry_is_no_target(split, write):
    mask = polygons_to_rle([[10, 20, 60, 20, 60, 60, 10, 60]], 80, 100)
    counts = {"size": [80, 100], "counts": mask.counts.decode()}
    path = write(
        [
            {"image_id": 7, "bbox": [0, 0, 5, 5], "score": 0.2},
            {"image_id": "8", "segmentation": counts, "score": 0.9},
            {"image_id": 7, "bbox": [10, 20, 50, 40], "score": 0.8},
            {"image_id": "7/3", "bbox": [1, 2, 3, 4], "score": 1},
            {"image_id": "7/3", "bbox": [1, 2, 3]},
            {"image_id": 99, "bbox": [0, 0, 5, 5]},
        ],
        as_list=True,
    )
    run = score(path, split, "coco-results")
    assert {kind: lines.count for kind, lines in run.problems["theirs.json"].items()} == {
        "not a prediction": 1,
        "unknown id": 1,
    }
    assert any("2 samples have no entry" in warning for warning in run.warnings)
    assert run.splits[0].failures == (("refcoco_unc/7/3", "an entry about it cannot be used"),)
    counted = run.splits[0].scores
    assert (counted.says_none.tolist(), counted.num_targets.tolist()) == ([True, False, False, True], [1, 1, 1, 0])
    found = answers(path, split, "coco-results")
    assert [target["score"] for target in found["7"]["targets"]] == [0.2, 0.8]
    assert found["8"]["targets"][0]["box_source"] == "mask"
    assert boxes(found["8"]) == [list(PIXELS)]
    choice = {NAME: choose_cases(run.splits[0], 5)}
    drawn = find_answers(path, {NAME: split}, choice, AnswerNotation.declare("coco-results"))[NAME]
    assert {row: len(answer.targets) for row, answer in drawn.items()} == {0: 0, 1: 2, 3: 1, 4: 0}


@pytest.mark.parametrize("records", [[{"image_id": 77, "bbox": [0, 0, 5, 5]}], [{"annotations": []}]])
def test_results_about_other_samples_are_refused_instead_of_read_as_no_target(split, write, records):
    with pytest.raises(DataError, match="no entry of the file is about a sample"):
        score(write(records, as_list=True), split, "grec")


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("gseval", {"idx": 7, "box": [10, 20, 60, 60]}, [[10, 20, 60, 60]]),
        ("gseval", {"idx": "007", "predicted_box": []}, []),
        ("gseval", {"idx": 7, "box": [1, 2, 3, 4], "predicted_box": [1, 2, 3, 4]}, "both given"),
        ("gseval", {"idx": 7}, "there is no box or predicted_box"),
        ("humanref", {"id": 7, "extracted_predictions": [[]]}, []),
        ("humanref", {"id": 7, "extracted_predictions": [[5, 6], [1, 2, 3, 4]]}, [[5, 6, 5, 6], [1, 2, 3, 4]]),
        ("humanref", {"id": 7, "extracted_predictions": [[1, 2, 3]]}, "3 numbers"),
        ("ref-l4", {"id": 7, "pred_bbox": [10, 20, 50, 40], "format": "xywh"}, [[10, 20, 60, 60]]),
        ("ref-l4", {"id": 7, "pred_bbox": [10, 20, 50, 40]}, "format"),
        ("finecops", {"image_id": 7, "text": "no such cup is visible", "scores_prob_average": []}, []),
        (
            "finecops",
            {"image_id": 7, "text": "[0, 0, 9, 9]", "scores_prob_average": [0.5, 0.4]},
            "1 boxes and 2 scores",
        ),
        ("finecops", {"image_id": 7, "text": "[0, 0, 9, 9]", "scores_prob_average": [float("nan")]}, "not finite"),
        ("d-cube", {"image_id": 7, "bbox": [0, 0, 5, 5], "score": 1}, "no category_id"),
        ("d-cube", {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "score": float("nan")}, "the score is nan"),
    ],
)
def test_lines_of_benchmarks_give_a_box_no_target_or_a_rejection(split, write, name, record, expected):
    """A box, no target, or a rejected line."""
    good = {"idx": 8, "id": 8, "image_id": 7 if name == "d-cube" else 8, "category_id": 3, "box": PIXELS}
    good |= {"bbox": PIXELS, "pred_bbox": PIXELS, "format": "xyxy", "extracted_predictions": [], "text": "none"}
    known = {"ref-l4": ("id", "pred_bbox", "format"), "gseval": ("idx", "box"), "finecops": ("image_id", "text")}
    known |= {"humanref": ("id", "extracted_predictions"), "d-cube": ("image_id", "category_id", "bbox")}
    path = write([{key: good[key] for key in known[name]}, record])
    if isinstance(expected, list):
        assert boxes(answers(path, split, name)["7"]) == expected
        return
    run = score(path, split, name)
    assert expected in run.problems["theirs.json"]["not a prediction"].first[0]


def test_numpys_lists_of_finecops_are_read_without_unpickling(split, tmp_path):
    some = {
        "img_id": 7,
        "bboxes": np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]], np.float32),
        "scores": np.array([0.5, 0.25]),
    }
    none = {"img_id": 8, "bboxes": np.zeros((0, 4)), "scores": []}
    path = tmp_path / "theirs.npy"
    path.write_bytes(npy([some, none, {"img_id": 9, "bboxes": [[1, 2, 3, 4]], "scores": []}]))
    found = answers(path, split, "finecops-npy")
    assert (boxes(found["7"]), found["8"]["no_target"], "9" in found) == ([[1, 2, 3, 4], [5, 6, 7, 8]], True, False)
    path.write_bytes(npy([some, Path]))
    with pytest.raises(DataError, match=r"refers to the global pathlib"):
        score(path, split, "finecops-npy")


def test_options_without_effect_are_refused():
    for name, declared in (
        ("ref-l4", {"coordinates": "unit"}),
        (REFCLI, {"coordinates": "unit"}),
        ("gemini", {"input_size": "5x5"}),
        ("qwen2.5-vl", {"input_size": "5x0"}),
        ("qwen3-vl", {"coordinates": "percent"}),
        ("qwen", {}),
    ):
        with pytest.raises(UsageError):
            AnswerNotation.declare(name, **declared)


def test_parts_that_were_read_in_different_notations_are_not_merged(split, write, tmp_path):
    path = write([text("7", "[1, 2, 3, 4]")])
    for name, declared in (("a", {}), ("b", {"coordinates": "pixels"})):
        write_run(score(path, split, "cogvlm", **declared), tmp_path / f"{name}.parquet")
    parts = {name: read_run(tmp_path / f"{name}.parquet") for name in ("a", "b")}
    with pytest.raises(DataError, match=r"cogvlm in thousand.*cogvlm in pixels"):
        merge_runs(parts)


def test_an_answer_of_a_parse_failure_is_written_with_its_reason():
    answer = Answer("a", "a.jpg", "x", 1, 1, (), False, None, "m", error="no box", parse_failure=True)
    assert answer_to_json(answer)["parse_failure"] is True


def entries(name: str, own_id: str, boxes_xyxy: tuple[tuple[float, ...], ...]) -> list[dict[str, object]]:
    """The right answer to a sample, as its benchmark's file has it."""
    xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes_xyxy]
    per_mille = "; ".join(str([10 * x1, 12.5 * y1, 10 * x2, 12.5 * y2]) for x1, y1, x2, y2 in boxes_xyxy)
    image, _, description = own_id.partition("/")
    return {
        "gseval": [{"idx": int(image), "box": list(boxes_xyxy[0])}],
        "humanref": [{"id": int(image), "extracted_predictions": [list(box) for box in boxes_xyxy]}],
        "ref-l4": [{"id": int(image), "pred_bbox": xywh[0], "format": "xywh"}],
        "finecops": [{"image_id": int(image), "text": per_mille}],
        "d-cube": [{"image_id": int(image), "category_id": description, "bbox": box, "score": 1} for box in xywh],
        "coco-results": [{"image_id": int(image), "category_id": 1, "bbox": box, "score": 1} for box in xywh],
    }[name]


@pytest.mark.parametrize(
    ("data_set", "name"),
    [
        ("gseval", "gseval"),
        ("humanref", "humanref"),
        ("ref_l4", "ref-l4"),
        ("finecops_ref", "finecops"),
        ("d_cube", "d-cube"),
        ("refdrone", "coco-results"),
    ],
)
def test_the_ids_of_a_benchmark_meet_those_that_prepare_data_gives(data_set, name, tmp_path, write):
    release = RELEASES[data_set]
    (tmp_path / "raw").mkdir()
    release.write(tmp_path / "raw")
    prepare(plan_named(data_set, raw=tmp_path / "raw"), Preparation(out=tmp_path / "store"))
    truth = next(one for one in release.expected if one.boxes_xyxy)
    split = Store(tmp_path / "store").split(f"{data_set}:{truth.split}")
    path = write(entries(name, truth.id.partition("/")[2], truth.boxes_xyxy))
    run = score_file(path, {split.name: split}, notation=AnswerNotation.declare(name))
    (row,) = (at for at in range(len(split)) if split[at].id == truth.id)
    assert (run.problems, run.splits[0].table["box_iou"][row].as_py()) == ({}, pytest.approx(1))
