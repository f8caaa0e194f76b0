"""`refcli prepare-data` and `refcli audit` in a separate process: exit codes, stdout, stderr, and files."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from refcli.cli import app
from refcli.data.store.read import Store

WIDTH, HEIGHT = 100, 80


class Done(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def refcli(monkeypatch, capsys):
    """Run the command line in this process, as `python -m refcli` does."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["refcli", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            app.run()
        report = capsys.readouterr()
        return Done(int(left.value.code), report.out, report.err)

    return run


def write_release(folder: Path, **splits_by_author: dict[str, list[int]]) -> None:
    """REFER's files: one object with one expression in every image of the splits."""
    folder.mkdir(parents=True)
    for author, splits in splits_by_author.items():
        refs = [
            {"ref_id": number, "ann_id": 100 + number, "image_id": number, "split": split}
            | {"sentences": [{"sent_id": number, "sent": f"thing {number}", "raw": f"Thing {number}"}]}
            for split, members in splits.items()
            for number in members
        ]
        (folder / f"refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [
            {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(1, 11)
        ],
        "annotations": [
            {"id": 100 + number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [number, 5, 20, 10]}
            | {"segmentation": [[number, 5, number + 20, 5, number + 20, 15, number, 15]]}
            for number in range(1, 11)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))


@pytest.fixture
def raw(tmp_path) -> Path:
    """A small RefCOCO family. Training images 2 and 6 are also in a val split of RefCOCOg, and 4 in RefCOCO's."""
    write_release(tmp_path / "raw/refcoco", unc={"train": [1, 2, 3], "val": [4], "testA": [9], "testB": [10]})
    write_release(tmp_path / "raw/refcoco+", unc={"train": [1, 2], "val": [8], "testA": [9], "testB": [10]})
    umd, google = {"train": [4, 5, 6], "val": [2], "test": [7]}, {"train": [5], "val": [6]}
    write_release(tmp_path / "raw/refcocog", umd=umd, google=google)
    return tmp_path / "raw"


def write_images(folder: Path, numbers: list[int]) -> Path:
    folder.mkdir()
    for number in numbers:
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"COCO_train2014_{number:012d}.jpg")
    return folder


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def image_ids(store: Path, name: str) -> list[str]:
    split = Store(store).split(name)
    return [split[index].image_id for index in range(len(split))]


def test_a_separate_process_prints_the_store_and_logs_to_stderr(tmp_path, raw):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "refcli", "prepare-data", "refcoco_unc", "--raw", raw, "--out", store]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, f"{store}\n"), done.stderr
    assert "refcoco_unc:train has 3 expressions, 3 images, 3 refs; 120,624, 16,994, 42,404 are exp" in done.stderr
    assert image_ids(store, "refcoco_unc:train") == ["coco:1", "coco:2", "coco:3"]


def test_json_has_splits_problems_and_the_audit(tmp_path, raw, refcli):
    images = write_images(tmp_path / "train2014", [2, 3, 4, 7, 9, 10])
    done = refcli(
        "prepare-data", "refcoco_unc", "refcocog_umd", "--raw", raw, "--out", tmp_path / "store", "--json",
        "--images", images, "--check-images",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["store"] == str(tmp_path / "store")
    first, second = report["datasets"]
    assert {split["split"]: split["examples"] for split in first["splits"]} == {
        "train": 2,
        "val": 1,
        "testA": 1,
        "testB": 1,
    }
    assert {split["split"]: split["masks"] for split in second["splits"]} == {"train": 1, "val": 1, "test": 1}
    assert (first["problems"], second["problems"]) == ({"missing_image": 1}, {"missing_image": 2})
    assert (first["left_out"], second["left_out"]) == ({"train": 1}, {"train": 2})
    assert "000000000001" in first["places"]["missing_image"][0]
    pairs = {(row["train"], row["evaluation"]): row for row in report["audit"]["overlaps"] if row["shared_images"]}
    assert set(pairs) == {("refcoco_unc:train", "refcocog_umd:val"), ("refcocog_umd:train", "refcoco_unc:val")}
    assert all(pair["shared_objects"] == pair["identical_examples"] == 1 for pair in pairs.values())


def test_a_dry_run_names_the_files_and_writes_nothing(tmp_path, raw, refcli):
    before = files_below(tmp_path)
    own = raw / "refcoco" / "refs(unc).p"
    out = ("--out", tmp_path / "store", "--dry-run", "--json")
    for arguments in (("refcoco_unc", "mixup_refc", "synthetic", "--raw", raw), ("--from", own, "--name", "mine")):
        done = refcli("prepare-data", *arguments, *out)
        assert done.code == 0, done.err
        assert str(own) in done.err
        assert {one["status"] for one in json.loads(done.out)["datasets"]} == {"dry-run"}
    assert files_below(tmp_path) == before
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "report"),
    [
        (["refcoco_unc", "--raw", "{raw}"], "--out"),
        (["refcoco_unk", "--raw", "{raw}", "--out", "{out}"], "did you mean 'refcoco_unc'?"),
        (["refcoco_unc", "--raw", "{raw}", "--out", "{out}", "--set", "texxt=raw"], "did you mean 'text'?"),
        (["refcoco_unc", "--raw", "{raw}", "--out", "{out}", "--split", "testC"], "has no split 'testC'"),
        (["--from", "{raw}/refcoco/instances.json", "--out", "{out}"], "--name"),
        (["--from", "{raw}/notes.txt", "--out", "{out}", "--name", "mine"], "--format"),
        (
            ["--from", "{raw}/notes.txt", "--out", "{out}", "--name", "mine", "--format", "cocoo"],
            "did you mean 'coco'?",
        ),
    ],
)
def test_contradictory_options_exit_with_2_and_write_nothing(tmp_path, raw, refcli, arguments, report):
    (raw / "notes.txt").write_text("nothing of use")
    done = refcli("prepare-data", *(word.format(raw=raw, out=tmp_path / "store") for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert report in done.err
    assert not (tmp_path / "store").exists() or not files_below(tmp_path / "store")


def test_missing_files_exit_with_5_and_name_their_download_pages(tmp_path, refcli):
    (tmp_path / "empty").mkdir()
    done = refcli("prepare-data", "refcoco_unc", "--raw", tmp_path / "empty", "--out", tmp_path / "store")
    assert (done.code, done.out) == (5, "")
    assert "refs(unc).p" in done.err
    assert "https://github.com/lichengunc/refer" in done.err


class Evil:
    """Writes a file when `pickle` loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def hostile_pickle(folder, ran):
    write_release(folder / "bad", unc={"train": [1]})
    (folder / "bad" / "refs(unc).p").write_bytes(pickle.dumps([Evil(ran)]))
    return ["--from", folder / "bad" / "refs(unc).p", "--format", "refer"]


def hostile_torch_file(folder, ran):
    with zipfile.ZipFile(folder / "bad.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([Evil(ran)], protocol=2))
    return ["--from", folder / "bad.pth", "--format", "pth"]


def climbing_archive_of_images(folder, ran):
    write_release(folder / "good", unc={"train": [1]})
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr(f"train2014/../../{ran.name}/COCO_train2014_{1:012d}.jpg", b"an image")
    return ["--from", folder / "good" / "refs(unc).p", "--images", folder / "bad.zip"]


def climbing_archive_of_annotations(folder, ran):
    (folder / "train.txt").write_text("11\n")
    with zipfile.ZipFile(folder / "annotations.zip", "w") as archive:
        archive.writestr("Sentences/11.txt", "[/EN#1/people Two men] .\n")
        archive.writestr(f"Annotations/../../{ran.name}.xml", "<annotation/>")
    return ["--from", folder / "annotations.zip", "--format", "flickr"]


def xml_with_entities(folder, ran):
    (folder / "train.txt").write_text("11\n")
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    xml = f'<!DOCTYPE a [<!ENTITY l0 "ha"><!ENTITY x SYSTEM "file://{ran}">{laughs}]><a>&l9;&x;</a>'
    with zipfile.ZipFile(folder / "annotations.zip", "w") as archive:
        archive.writestr("Sentences/11.txt", "[/EN#1/people Two men] .\n")
        archive.writestr("Annotations/11.xml", xml)
    return ["--from", folder / "annotations.zip"]


ATTACKS = (
    hostile_pickle, hostile_torch_file, climbing_archive_of_images, climbing_archive_of_annotations, xml_with_entities
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_exits_with_5_and_one_message_and_has_no_effect(tmp_path, refcli, attack):
    folder = tmp_path / "raw" / "deep"
    folder.mkdir(parents=True)
    arguments = attack(folder, tmp_path / "ran")
    before = files_below(tmp_path)
    done = refcli("prepare-data", *arguments, "--name", "mine", "--out", tmp_path / "raw" / "store")
    assert (done.code, done.out) == (5, ""), done.err
    assert done.err.count("error: ") == 1
    assert "where: " in done.err
    assert "Traceback" not in done.err and "unexpected" not in done.err
    assert files_below(tmp_path) == before


def test_a_failed_strict_preparation_leaves_the_store_unchanged(tmp_path, raw, refcli):
    store, own = tmp_path / "store", raw / "refcoco" / "refs(unc).p"
    arguments = ("prepare-data", "--from", own, "--name", "mine", "--out", store, "--strict")
    assert refcli(*arguments).code == 0
    before = {path: path.read_bytes() for path in files_below(store)}
    done = refcli(*arguments, "--images", write_images(tmp_path / "images", [2, 3, 4, 9, 10]))
    assert (done.code, done.out) == (5, "")
    assert "missing image" in done.err
    assert {path: path.read_bytes() for path in files_below(store)} == before


def test_the_audit_is_a_gate_for_shared_images(tmp_path, raw, refcli):
    store = tmp_path / "store"
    prepare = ("prepare-data", "--raw", raw, "--out", store)
    assert refcli(*prepare, "refcoco_unc").code == 0
    assert refcli("audit", store, "--fail-on-overlap").code == 0
    assert refcli(*prepare, "refcocog_umd").code == 0
    done = refcli("audit", store, "--fail-on-overlap", "--json")
    assert done.code == 4
    assert "share images" in done.err
    pairs = {(row["train"], row["evaluation"]): row["shared_images"] for row in json.loads(done.out)["overlaps"]}
    assert len(pairs) == 2 * 5
    assert {pair: shared for pair, shared in pairs.items() if shared} == {
        ("refcoco_unc:train", "refcocog_umd:val"): 1,
        ("refcocog_umd:train", "refcoco_unc:val"): 1,
    }


def test_verification_accepts_an_intact_store_and_names_changed_files(tmp_path, raw, refcli):
    store = tmp_path / "store"
    assert refcli("prepare-data", "refcoco_unc", "--raw", raw, "--out", store).code == 0
    done = refcli("prepare-data", "--verify", store)
    assert (done.code, done.out) == (0, f"{store}\n")
    content = bytearray((store / "refcoco_unc" / "val.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (store / "refcoco_unc" / "val.parquet").write_bytes(content)
    done = refcli("prepare-data", "--verify", store)
    assert (done.code, done.out) == (5, "")
    assert "refcoco_unc:val" in done.err and "was changed" in done.err
    assert "refcoco_unc:train" not in done.err


def test_a_mixture_leaves_out_evaluation_images_unless_it_reproduces_the_paper(tmp_path, raw, refcli):
    store = tmp_path / "store"
    members = {"refcoco_unc": 1, "refcoco_plus_unc": 1, "refcocog_umd": 2}
    done = refcli("prepare-data", *members, "refcocog_google", "mixup_refc", "--raw", raw, "--out", store)
    assert (done.code, done.out) == (0, f"{store}\n"), done.err
    assert image_ids(store, "mixup_refc:train") == ["coco:1", "coco:3", "coco:1", "coco:5"]
    assert image_ids(store, "mixup_refc:val") == ["coco:2"]
    for member, leaks in members.items():
        stated = re.escape(f"mixup_refc:train from {member}:train: ") + rf"\d expressions; {leaks} on {leaks} images"
        assert re.search(stated + " .* left out", done.err)
    done = refcli("prepare-data", "mixup_refc", "--out", store, "--reproduce-paper", "--json")
    assert done.code == 0, done.err
    assert image_ids(store, "mixup_refc:train") == [f"coco:{number}" for number in (1, 2, 3, 1, 2, 4, 5, 6)]
    stated = [one for one in json.loads(done.out)["datasets"][0]["members"] if one["split"] == "train"]
    assert [(one["member"], one["leaking_rows"], one["dropped_rows"]) for one in stated] == [
        (f"{member}:train", leaks, 0) for member, leaks in members.items()
    ]
