"""Commands that the documentation and `presets list` print work unchanged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import duckdb
import pytest
from PIL import Image

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "predict.md"
DEFAULT_SPLIT = "read as the split train"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "deep/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "white").save(folder / name)
    return folder


@pytest.fixture
def prepare(refcli, tmp_path):
    """Prepare two lines of own data; (exit code, stderr)."""

    def call(images: Path | None, *, splits=(None, None), name="mine.jsonl", options=()) -> tuple[int, str]:
        lines = []
        for image, split in zip(("a.jpg", "b.jpg"), splits, strict=True):
            line = {"image": image, "expression": f"thing of {image}", "box": [1, 2, 30, 20], "width": 60, "height": 40}
            lines.append(json.dumps(line | ({"split": split} if split else {})))
        (tmp_path / name).write_text("\n".join(lines))
        where = ("--images", images) if images else ()
        code, _, err = refcli(
            *("prepare-data", "--from", tmp_path / name, "--name", "mine", "--out", tmp_path / "store", *where),
            *options,
        )
        return code, err

    return call


def recipe(pattern: str) -> str:
    found = re.search(pattern, GUIDE.read_text(encoding="utf-8"))
    assert found
    return found[1]


def make_requests(tmp_path) -> Path:
    """Make request lines with DuckDB, as in the guide."""
    sql = recipe(r"`(copy \(select id, image, expression [^`]*)`").replace("STORE/DATASET", f"{tmp_path}/store/mine")
    duckdb.execute(sql)
    return tmp_path / "store" / "mine" / "requests.jsonl"


def assert_answered_and_scored(refcli, tmp_path, monkeypatch, requests: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = refcli("predict", requests)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["error"] for answer in answers] == [None, None]
    (tmp_path / "answers.jsonl").write_text(out)
    code, _, err = refcli(
        *("evaluate", "--predictions", tmp_path / "answers.jsonl", "--data", tmp_path / "store"),
        *("--split", "mine:train", "--out", tmp_path / "report"),
    )
    assert code == 0, err


def test_request_lines_of_a_store_find_images_that_were_not_copied(refcli, prepare, photos, tmp_path, monkeypatch):
    assert prepare(photos)[0] == 0
    assert_answered_and_scored(refcli, tmp_path, monkeypatch, make_requests(tmp_path))


def test_request_lines_of_a_store_find_images_that_were_unpacked(refcli, prepare, photos, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(photos / "a.jpg", "x/a.jpg")
        archive.write(photos / "deep" / "b.jpg", "x/b.jpg")
    assert prepare(tmp_path / "photos.zip")[0] == 0
    assert_answered_and_scored(refcli, tmp_path, monkeypatch, make_requests(tmp_path))


def test_request_lines_beside_the_manifest_find_the_images_too(refcli, prepare, photos, tmp_path, monkeypatch):
    assert prepare(photos)[0] == 0
    beside = make_requests(tmp_path).rename(tmp_path / "store" / "requests.jsonl")
    assert_answered_and_scored(refcli, tmp_path, monkeypatch, beside)


def test_a_manifest_of_another_program_is_ignored(refcli, photos):
    (photos / "manifest.json").write_text('{"name": "a web page"}')
    lines = [{"image": name, "expression": "x"} for name in ("a.jpg", "none.jpg")]
    (photos / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = refcli("predict", photos / "r.jsonl")
    assert code == 3
    assert [bool(json.loads(line)["error"]) for line in out.splitlines()] == [False, True]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_jq_filter_prints_boxes_only(refcli, photos):
    lines = [{"image": name, "expression": "a thing"} for name in ("a.jpg", "none.jpg")]
    (photos / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, out, _ = refcli("predict", photos / "r.jsonl")
    line = recipe(r"refcli predict - \| jq -c '([^']*)'")
    failed = out.splitlines()[1] + "\n"
    found = json.dumps(json.loads(failed) | {"error": None, "targets": [{"box": [1, 2, 3, 4]}, {"box": [5, 6, 7, 8]}]})
    done = subprocess.run(["jq", "-c", line], input=failed + found, capture_output=True, text=True, check=True)
    assert done.stdout == "[1,2,3,4]\n[5,6,7,8]\n"


def test_no_default_split_is_reported_for_lines_that_name_their_split(prepare, photos):
    code, err = prepare(photos, splits=("val", "dev"))
    assert code == 0
    assert DEFAULT_SPLIT not in err
    assert "mine:dev" in err


@pytest.mark.parametrize(
    ("name", "options", "is_reported"),
    [("mine.jsonl", (), True), ("mine_val.jsonl", (), False), ("mine.jsonl", ("--split", "test"), False)],
)
def test_the_default_split_train_is_reported_if_nothing_names_another(prepare, photos, name, options, is_reported):
    code, err = prepare(photos, name=name, options=options)
    assert code == 0
    assert (DEFAULT_SPLIT in err) == is_reported


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_commands_accept_the_preset_names_that_the_list_prints(refcli, tmp_path, command):
    _, listed, _ = refcli("presets", "list")
    assert f"{command}/synthetic_tiny" in listed
    for name in (f"{command}/synthetic_tiny", "synthetic_tiny"):
        code, _, err = refcli(command, "-p", name, "-d", tmp_path / "none", "-o", tmp_path / "run")
        assert code == 5, err
        assert "prepare-data synthetic" in err  # only the store is missing


@pytest.mark.parametrize("name", ["finetune/synthetic_tiny", "synthetic_tiny"])
def test_a_file_may_extend_a_preset_by_either_name(refcli, tmp_path, name):
    (tmp_path / "own.yaml").write_text(f"extends: {name}\ntrain: {{steps: 3}}\n")
    code, out, err = refcli("presets", "check", tmp_path / "own.yaml")
    assert (code, out) == (0, f"ok {tmp_path / 'own.yaml'}\n"), err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("finetune/synthetic_tny", "did you mean 'synthetic_tiny'"),
        ("pretrain/paper", "it is 'pretrain/paper'"),
        ("paper", "it is 'pretrain/paper'"),
    ],
)
def test_an_unknown_preset_is_named_with_a_suggestion(refcli, tmp_path, name, hint):
    code, _, err = refcli("finetune", "-p", name, "-d", tmp_path, "-o", tmp_path / "run")
    assert code == 2
    assert hint in err


def test_a_file_takes_precedence_over_a_preset_of_the_same_name(refcli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "synthetic_tiny").write_text("train: {steps: none}\n")
    code, _, err = refcli("finetune", "-p", "finetune/synthetic_tiny", "-d", tmp_path, "-o", tmp_path / "run")
    assert code == 2
    assert "train.steps" in err
