"""`refcli prepare-data` on genuine annotations and photographs, which are not shipped (REFCLI_REALDATA)."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest

from refcli.cli import app
from refcli.data.store.read import Store
from refcli.geometry.masks import rle_area

REAL = Path(os.environ.get("REFCLI_REALDATA") or "nowhere").resolve()
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="REFCLI_REALDATA is not set")
AREA_TOLERANCE = 0.02
"""Largest relative difference between the total area of polygons and that of their pixels."""


@pytest.fixture
def prepare_data(monkeypatch, capsys):
    """Run `refcli prepare-data ... --json`; returns (exit code, parsed stdout, stderr)."""

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["refcli", "prepare-data", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as left:
            app.run()
        shown = capsys.readouterr()
        return int(left.value.code), json.loads(shown.out) if shown.out else None, shown.err

    return run


def folder(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"REFCLI_REALDATA has no {name}")
    return REAL / name


def examples_of(store: Path, name: str) -> list:
    split = Store(store).split(name)
    return [split[index] for index in range(len(split))]


def all_examples(store: Path) -> list:
    return [example for name in Store(store).names() for example in examples_of(store, name)]


def corners(box_xywh):
    x, y, width, height = box_xywh
    return pytest.approx((x, y, x + width, y + height))


def test_the_five_sets_of_the_refcoco_family_from_one_folder(tmp_path, prepare_data):
    names = ("refcoco_unc", "refcoco_google", "refcoco_plus_unc", "refcocog_google", "refcocog_umd")
    raw = folder("refer_tfds_sample")
    code, shown, err = prepare_data(*names, "--raw", raw, "--out", tmp_path)
    assert code == 0, err
    reports = shown["datasets"]
    sizes = {one["dataset"]: sum(split["examples"] for split in one["splits"]) for one in reports}
    assert sizes == dict(zip(names, (23, 17, 25, 8, 12), strict=True))
    assert all(not one["problems"] for one in reports)
    truth = {
        f"coco:{one['id']}": one
        for release in ("refcoco", "refcoco+", "refcocog")
        for one in json.loads((raw / release / "instances.json").read_text())["annotations"]
    }
    for example in all_examples(tmp_path):
        (region,) = example.regions
        annotation = truth[region.source_id]
        assert example.image_id == f"coco:{annotation['image_id']}"
        assert region.box_xyxy == corners(annotation["bbox"])
        assert rle_area(region.mask) == pytest.approx(annotation["area"], rel=AREA_TOLERANCE, abs=20)
    assert "left vase" in [one.expression for one in examples_of(tmp_path, "refcoco_unc:train")]
    leaks = {(row["train"], row["evaluation"]): row for row in shown["audit"]["overlaps"] if row["shared_images"]}
    assert leaks["refcoco_unc:train", "refcocog_google:val"]["shared_objects"] == 1


def test_pickles_of_python_2_give_what_those_of_python_3_give(tmp_path, prepare_data):
    raw = folder("refer_tfds_sample") / "refcocog"
    for form in ("p", "py2proto0.p", "json"):
        file = raw / f"refs(umd).{form}"
        code, _, err = prepare_data("--from", file, "--name", "mine", "--out", tmp_path / form)
        assert code == 0, err
    assert all_examples(tmp_path / "p") == all_examples(tmp_path / "py2proto0.p") == all_examples(tmp_path / "json")
    assert len(all_examples(tmp_path / "p")) == 12


def test_the_lists_of_transvg_become_two_splits_of_one_set(tmp_path, prepare_data):
    raw = folder("refcoco_transvg_pth")
    for split, size in {"val": 7_640, "test": 3_820}.items():
        file = raw / f"my_{split}_split.pth"
        code, shown, err = prepare_data("--from", file, "--name", "heard", "--out", tmp_path)
        assert code == 0, err
        assert [(one["split"], one["examples"]) for one in shown["datasets"][0]["splits"]] == [(split, size)]
        with zipfile.ZipFile(file) as archive:
            rows = pickle.loads(archive.read("archive/data.pkl"))
        examples = examples_of(tmp_path, f"heard:{split}")
        for row, example in list(zip(rows, examples, strict=True))[::97]:
            image, annotation, box, phrase, _ = row
            assert (example.image, example.expression) == (image, " ".join(phrase.split()))
            assert example.regions[0].box_xyxy == corners(box)
            assert example.regions[0].source_id == "coco:" + annotation.removesuffix(".pth")


def test_referit_has_the_published_counts(tmp_path, prepare_data):
    code, shown, err = prepare_data("referit", "--raw", folder("referit_berkeley"), "--out", tmp_path, "--strict")
    assert code == 0, err
    report = shown["datasets"][0]
    assert {one["split"]: one["examples"] for one in report["splits"]} == {
        "train": 54_127,
        "val": 5_842,
        "test": 60_103,
    }
    assert len(report["counts"]) == 9
    assert all(check["agrees"] for check in report["counts"])
    assert report["problems"].pop("known_missing_image") == 9
    assert set(report["problems"]) <= {"region_without_expression", "repaired_text"}
    assert "share images" in err and "0 of 2 pairs" in err


def test_photographs_of_a_refer_set_are_found_and_complete(tmp_path, prepare_data):
    file = folder("template_refs") / "refs(template).json"
    code, shown, err = prepare_data(
        "--from", file, "--name", "template", "--out", tmp_path, "--check-images", "--strict",
        "--images", folder("coco128"), "--images", folder("tiny_coco"),
    )  # fmt: skip
    assert code == 0, err
    splits = shown["datasets"][0]["splits"]
    assert sum(one["examples"] for one in splits) == 1_124
    assert all(one["masks"] == one["regions"] == one["examples"] for one in splits)
    for name in Store(tmp_path).names():
        split = Store(tmp_path).split(name)
        assert all(split.image_path(split[index]).is_file() for index in range(0, len(split), 10))


def test_several_targets_and_none(tmp_path, prepare_data):
    file = folder("template_refs") / "grefs(template).json"
    code, shown, err = prepare_data("--from", file, "--name", "template", "--out", tmp_path)
    assert code == 0, err
    refs = json.loads(file.read_text())
    expected = {
        f"template/{ref['ref_id']}/{sentence['sent_id']}": () if ref["no_target"] else tuple(ref["ann_id"])
        for ref in refs
        for sentence in ref["sentences"]
    }
    found = {
        one.id: tuple(int(region.source_id.removeprefix("coco:")) for region in one.regions)
        for one in all_examples(tmp_path)
    }
    assert found == expected
    assert sum(one["no_target"] for one in shown["datasets"][0]["splits"]) == 228


def test_genuine_expressions_in_custom_lines(tmp_path, prepare_data):
    rows = [json.loads(line) for line in (folder("joined_real") / "refs.jsonl").read_text().splitlines()]
    lines = [
        {"id": row["id"], "image": row["image"], "expression": row["expression"], "kind": row["source"]}
        | {"width": row["width"], "height": row["height"], "box_xywh": row["bbox_xywh"]}
        | ({"segmentation": row["segmentation"]} if row["segmentation"] else {})
        for row in rows
    ]
    file = tmp_path / "joined_test.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, shown, err = prepare_data(
        "--from", file, "--name", "joined", "--out", tmp_path / "store", "--images", REAL, "--check-images", "--strict"
    )
    assert code == 0, err
    examples = examples_of(tmp_path / "store", "joined:test")
    assert [one.expression for one in examples] == [row["expression"] for row in rows]
    assert len({one.image_id for one in examples}) == 11
    assert sum(one.regions[0].mask is not None for one in examples) == sum(bool(row["segmentation"]) for row in rows)
    for row, example in zip(rows, examples, strict=True):
        assert example.regions[0].box_xyxy == pytest.approx(corners(row["bbox_xywh"]).expected, abs=0.5)
    assert not shown["datasets"][0]["problems"]


def test_plain_coco_needs_expressions_and_keeps_masks_and_crowds(tmp_path, prepare_data):
    annotations = folder("tiny_coco") / "annotations"
    for bare in ("instances_val2017.json", "captions_val2017.json"):
        code, shown, err = prepare_data("--from", annotations / bare, "--name", "tiny", "--out", tmp_path / "none")
        assert (code, shown) == (5, None)
        assert "there is no expression with a target in it" in err
    file = json.loads((annotations / "instances_val2017.json").read_text())
    names = {one["id"]: one["name"] for one in file["categories"]}
    truth = {f"tiny/{one['id']}/0": one for one in file["annotations"]}
    for one in file["annotations"]:
        one["expression"] = f"the {names[one['category_id']]}"
    (tmp_path / "named_val.json").write_text(json.dumps(file))
    code, _, err = prepare_data(
        "--from", tmp_path / "named_val.json", "--name", "tiny", "--out", tmp_path / "store", "--strict",
        "--images", REAL / "tiny_coco", "--check-images",
    )  # fmt: skip
    assert code == 0, err
    examples = examples_of(tmp_path / "store", "tiny:val")
    assert len(examples) == len(truth) == 382
    areas = {one.id: rle_area(one.regions[0].mask) for one in examples}
    crowds = [name for name, one in truth.items() if one["iscrowd"]]
    assert len(crowds) == 5
    assert [areas[name] for name in crowds] == [sum(truth[name]["segmentation"]["counts"][1::2]) for name in crowds]
    of_polygons = set(truth) - set(crowds)
    drawn = sum(truth[name]["area"] for name in of_polygons)
    assert sum(areas[name] for name in of_polygons) == pytest.approx(drawn, rel=AREA_TOLERANCE)
