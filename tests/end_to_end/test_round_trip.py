"""Answers leave as files of other tools and come back as data: equal, or as an annotator corrected them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from annotators import label_of, moved, write_export
from corpora.label_tools import brush_result
from image_files import write_image

from refcli.answers import answer_line
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.data.store.read import Store
from refcli.geometry.masks import mask_box, polygons_to_rle

PHOTOGRAPHS = Path(os.environ.get("REFCLI_REALDATA") or "nowhere").resolve() / "coco128"
NOUNS = ("person", "car", "cup")
LEAST_GAIN = 0.1
"""Gain of box accuracy on the images that were trained on."""
WIDTH, HEIGHT = 100, 80
LEFT, MIDDLE, RIGHT = (10.0, 20.0, 30.0, 60.0), (32.0, 8.0, 48.0, 72.0), (50.0, 20.0, 90.0, 60.0)


def triangle(box) -> RLE:
    left, top, right, bottom = box
    return polygons_to_rle([[left, top, right, top, left, bottom]], HEIGHT, WIDTH)


def answer(number: int, image: str, expression: str, *boxes, score: float = 0.9) -> Answer:
    targets = tuple(Target(mask_box(triangle(box)), score, triangle(box)) for box in boxes)
    return Answer(str(number), image, expression, WIDTH, HEIGHT, targets, not targets, None, "demo")


@pytest.fixture
def predictions(tmp_path, monkeypatch) -> Path:
    """Five answers about two images, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("images/a.jpg", "images/b c.jpg"):
        write_image(tmp_path / name, (WIDTH, HEIGHT))
    answers = [
        answer(1, "images/a.jpg", "the cup", LEFT),
        answer(2, "images/a.jpg", "both plates", MIDDLE, RIGHT),
        answer(3, "images/a.jpg", "the fork"),
        answer(4, "images/b c.jpg", "the cup"),
        answer(5, "images/b c.jpg", "the lid", RIGHT, score=0.2),
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{answer_line(one)}\n" for one in answers))
    return path


def stored(store: Path) -> dict[tuple[str, str], tuple]:
    """(image, expression) -> the regions, each box and mask."""
    split = Store(store).split("back:train")
    examples = [split[index] for index in range(len(split))]
    return {
        (one.image, one.expression): tuple((region.box_xyxy, region.mask) for region in one.regions) for one in examples
    }


def regions(*boxes) -> tuple:
    return tuple((mask_box(triangle(box)), triangle(box)) for box in boxes)


def test_corrections_made_in_label_studio_are_in_the_store_exactly(predictions, refcli, tmp_path):
    code, _, err = refcli("convert-answers", predictions, "--to", "label-studio", "--out", "tasks")
    assert code == 0, err
    brush = brush_result((60.0, 10.0, 70.0, 30.0), "the cup", id="kX93-q")

    def correct_first(results):
        """Delete one of the plates and move the box of the other to the right by a tenth of the image."""
        _, _, box, mask, *other = results
        assert [label_of(one) for one in other] == ["both plates"] * 2
        return [*results[:2], moved(box, 10), mask]

    corrections = {"images/a.jpg": correct_first, "images/b c.jpg": lambda results: [brush]}
    write_export(tmp_path / "tasks/label_studio.json", tmp_path / "export.json", corrections)

    code, _, err = refcli("prepare-data", "--from", "export.json", "--name", "back", "--images", ".", "--out", "store")

    assert code == 0, err
    left, top, right, bottom = mask_box(triangle(MIDDLE))
    moved_box = (left + 10, top, right + 10, bottom)
    painted = ((60.0, 10.0, 70.0, 30.0), polygons_to_rle([[60, 10, 70, 10, 70, 30, 60, 30]], HEIGHT, WIDTH))
    found = stored(tmp_path / "store")
    assert found.pop(("images/a.jpg", "both plates")) == ((pytest.approx(moved_box), triangle(MIDDLE)),)
    assert found == {
        ("images/a.jpg", "the cup"): ((pytest.approx(mask_box(triangle(LEFT))), triangle(LEFT)),),
        ("images/a.jpg", "the fork"): (),
        ("images/b c.jpg", "the cup"): (painted,),
        ("images/b c.jpg", "the lid"): (),
    }


@pytest.mark.parametrize(
    ("form", "file", "has_masks", "has_no_target"),
    [
        ("refcli-data", "data.jsonl", True, True),
        ("odvg", "odvg.jsonl", False, False),
        ("cvat", "annotations.xml", True, False),
        ("labelme", "", True, False),
        ("yolo", "data.yaml", False, False),
    ],
)
def test_pseudo_labels_survive_the_round_trip(form, file, has_masks, has_no_target, predictions, refcli, tmp_path):
    code, _, err = refcli("convert-answers", predictions, "--to", form, "--out", "out", "--min-score", 0.5)
    assert code == 0, err
    if form == "yolo":
        (tmp_path / "images").rename(tmp_path / "out/images")

    name = ("--from", f"out/{file}", "--name", "back", "--split", "train")
    code, _, err = refcli("prepare-data", *name, "--images", "out" if form == "yolo" else ".", "--out", "store")

    assert code == 0, err
    expected = {
        ("images/a.jpg", "the cup"): regions(LEFT),
        ("images/a.jpg", "both plates"): regions(MIDDLE, RIGHT),
        ("images/a.jpg", "the fork"): (),
        ("images/b c.jpg", "the cup"): (),
    }
    found = stored(tmp_path / "store")
    kept = {key: value for key, value in expected.items() if value or has_no_target}
    assert found.keys() == kept.keys()
    for key, wanted in kept.items():
        assert [box for box, _ in found[key]] == [pytest.approx(box, abs=1e-4) for box, _ in wanted]
        assert [mask for _, mask in found[key]] == [mask if has_masks else None for _, mask in wanted]


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="REFCLI_REALDATA is not set")
def test_a_model_that_is_trained_on_corrections_answers_better(refcli, tmp_path, monkeypatch):
    """The whole trip with 100 photographs of COCO: the annotator gives the largest object of each class."""
    monkeypatch.chdir(tmp_path)
    truth = largest_objects(PHOTOGRAPHS / "annotations/instances_train2017.json")
    names = sorted(truth)[:100]
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_bytes((PHOTOGRAPHS / "train2017" / name).read_bytes())
    asked = [argument for noun in NOUNS for argument in ("-e", f"the largest {noun}")]
    code, lines, err = refcli("predict", "photos", *asked)
    assert code == 0, err
    Path("predictions.jsonl").write_text(lines)
    code, _, err = refcli("convert-answers", "predictions.jsonl", "--to", "label-studio", "--out", "tasks")
    assert code == 0, err

    drawn = {f"photos/{name}": [drawn_box(*one) for one in truth[name].items()] for name in names}
    corrections = {image: (lambda _, results=results: results) for image, results in drawn.items()}
    write_export(tmp_path / "tasks/label_studio.json", tmp_path / "export.json", corrections)
    code, _, err = refcli("prepare-data", "--from", "export.json", "--name", "back", "--images", ".", "--out", "store")
    assert code == 0, err
    assert {key: [box for box, _ in found] for key, found in stored(tmp_path / "store").items()} == {
        (f"photos/{name}", f"the largest {noun}"): [pytest.approx(truth[name][noun][0])] if noun in truth[name] else []
        for name in names
        for noun in NOUNS
    }

    before = measured(refcli, "builtin")
    code, _, err = refcli(
        "finetune", "--preset", "synthetic_small_count", "--init", "builtin", "--data", "store", "--out", "run",
        "--set", "data.train=back:train", "--set", "data.validation=back:train", "--set", "train.steps=200",
        "--set", "train.batch_size=16", "--set", "train.validate_every=200", "--set", "train.save_every=200",
        "--set", "optim.warmup_steps=20", "--set", "train.ema_decay=0.98",
    )  # fmt: skip
    assert code == 0, err
    after = measured(refcli, "run/weights")

    print(f"before {before}, after {after}")
    assert after["acc50"] > before["acc50"] + LEAST_GAIN


def largest_objects(instances: Path) -> dict[str, dict[str, tuple]]:
    """Image -> noun -> its largest object of that class: box, and size of the image."""
    document = json.loads(instances.read_text())
    nouns = {one["id"]: one["name"] for one in document["categories"] if one["name"] in NOUNS}
    images = {one["id"]: one for one in document["images"]}
    found: dict[str, dict[str, tuple]] = {one["file_name"]: {} for one in images.values()}
    for one in sorted(document["annotations"], key=lambda one: one["area"]):
        if one["category_id"] in nouns:
            image, (x, y, width, height) = images[one["image_id"]], one["bbox"]
            box = (x, y, x + width, y + height)
            found[image["file_name"]][nouns[one["category_id"]]] = (box, (image["width"], image["height"]))
    return found


def drawn_box(noun: str, place: tuple) -> dict:
    """The rectangle that an annotator draws."""
    (left, top, right, bottom), (width, height) = place
    value = {
        "x": 100 * left / width, "y": 100 * top / height, "width": 100 * (right - left) / width,
        "height": 100 * (bottom - top) / height, "rotation": 0, "rectanglelabels": [f"the largest {noun}"],
    }  # fmt: skip
    shared = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": f"drawn-{noun}", "from_name": "box", "type": "rectanglelabels", "value": value, **shared}


def measured(refcli, weights: str) -> dict[str, float]:
    code, out, err = refcli("evaluate", "--weights", weights, "--data", "store", "--split", "back:train", "--json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    return {name: metrics[f"back/train/{name}"] for name in ("acc50", "n_acc")}
