"""Boxes and masks come back equal from the files of other tools, through the tools' libraries where installed."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from refcli.answers import written
from refcli.answers.table import WRITERS
from refcli.contracts.prediction import Answer, Target
from refcli.data.sources.record import Problems
from refcli.data.sources.table import SOURCES
from refcli.geometry.brush_masks import brush_run_lengths
from refcli.geometry.masks import box_pixels, encode_mask, mask_box
from refcli.tables import lookup

HEIGHT, WIDTH = 40, 60
HOSTILE = 'the "red" cup <&>\u202e, =1+1'


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def target(bitmap: np.ndarray, score: float) -> Target:
    mask = encode_mask(bitmap)
    return Target(mask_box(mask), score, mask)


@pytest.fixture
def bitmaps() -> list[np.ndarray]:
    """Two discs, and a ring with a cut: a mask with a hole and several runs per row."""
    ring = disc(30, 20, 12) & ~disc(30, 20, 6)
    ring[18:20] = False
    return [disc(10, 10, 5), disc(40, 25, 8), ring]


@pytest.fixture
def answers(bitmaps) -> list[Answer]:
    shared = {"width": WIDTH, "height": HEIGHT, "no_target_score": None, "weights": "demo"}
    first, second, ring = (target(bitmap, score) for bitmap, score in zip(bitmaps, (0.9, 0.25, 0.75), strict=True))
    return [
        Answer("1", "a/x.png", "both cups", targets=(first, second), no_target=False, **shared),
        Answer("2", "b/x.png", HOSTILE, targets=(ring,), no_target=False, **shared),
        Answer("3", "a/x.png", "the fork", targets=(), no_target=True, **shared),
        Answer("4", "a/x.png", "both cups", targets=(), no_target=False, error="it is no image", **shared),
    ]


@pytest.fixture
def write(answers, tmp_path):
    def write(name: str, **options):
        written = lookup(WRITERS, name, what="answer format")(answers, tmp_path, **options)
        assert sorted(written.files) == sorted(
            str(path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*") if path.is_file()
        )
        return written

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_counts_what_it_writes_and_lists_what_it_cannot_hold(name, write):
    written = write(name)

    assert (written.num_answers, written.num_targets, written.failed) == (3, 3, ["4"])


@pytest.mark.parametrize("name", WRITERS)
def test_an_answer_whose_targets_all_have_a_low_score_is_left_out(name, write):
    written = write(name, min_score=0.8)

    assert (written.num_answers, written.num_targets) == (2, 1), "the ring is left out, the fork is still absent"


def test_coco_files_open_in_pycocotools_with_the_same_masks(write, bitmaps, tmp_path, capsys):
    write("coco")
    coco = COCO(str(tmp_path / "coco.json"))

    masks = [coco.annToMask(annotation) > 0 for annotation in coco.loadAnns(coco.getAnnIds())]
    assert all(np.array_equal(mask, bitmap) for mask, bitmap in zip(masks, bitmaps, strict=True))
    assert [annotation["area"] for annotation in coco.dataset["annotations"]] == [bitmap.sum() for bitmap in bitmaps]
    assert coco.dataset["annotations"][0]["bbox"] == [5, 5, 11, 11]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["both cups", "the fork", HOSTILE]
    assert coco.dataset["images"][0]["expressions_without_target"] == ["the fork"]


def test_yolo_boxes_are_fractions_of_the_image_and_equal_stems_have_files_of_their_own(write, tmp_path):
    write("yolo")

    assert (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines() == ["both cups", "the fork", HOSTILE]
    rows = [line.split() for line in (tmp_path / "labels" / "x.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["0", "0"]
    np.testing.assert_allclose(np.array(rows[0][1:], float), [10.5 / 60, 10.5 / 40, 11 / 60, 11 / 40], atol=1e-6)
    assert len((tmp_path / "labels" / "x-2.txt").read_text().splitlines()) == 1


def test_yolo_data_names_the_classes_for_ultralytics(write, tmp_path):
    write("yolo")

    data = yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))
    assert data == {"train": "images", "val": "images", "names": {0: "both cups", 1: "the fork", 2: HOSTILE}}


@pytest.mark.parametrize("given", ["a b/x.png", "{folder}/a b/x.png"])
def test_labelme_and_fiftyone_find_an_image_from_the_folder_of_their_files(given, answers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/x.png").touch()
    answers[:] = [replace(answers[0], image=given.format(folder=tmp_path))]
    out = tmp_path / "out/files"
    out.mkdir(parents=True)
    for name in ("labelme", "fiftyone"):
        lookup(WRITERS, name, what="answer format")(answers, out)

    assert json.loads((out / "x.json").read_text())["imagePath"] == "../../a b/x.png"
    (sample,) = json.loads((out / "samples.json").read_text())["samples"]
    assert sample["filepath"] == str(tmp_path / "a b/x.png")


def test_yolo_outlines_cover_a_mask_without_holes(write, bitmaps, tmp_path):
    write("yolo", outlines=True)

    row = (tmp_path / "labels" / "x.txt").read_text().splitlines()[1].split()
    points = np.array(row[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT) - 0.5
    filled = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points.round().astype(np.int32)], 1) > 0
    assert np.array_equal(filled, bitmaps[1])


def rle_pack(values: list[int]) -> np.ndarray:
    """Decode Label Studio's run lengths bit by bit, from the description of the format."""
    bits = "".join(f"{value:08b}" for value in values)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    size, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < size:
        repeats = read(1)
        length = read(lengths[read(2)]) + 1
        out += [read(word)] * length if repeats else [read(word) for _ in range(length)]
    return np.array(out, np.uint8).reshape(HEIGHT, WIDTH, 4)


def test_label_studio_masks_and_boxes_come_back(write, bitmaps, tmp_path):
    write("label-studio", image_url="/data/local-files/?d={image}")
    tasks = json.loads((tmp_path / "label_studio.json").read_text())

    assert [task["data"]["image"] for task in tasks] == ["/data/local-files/?d=a/x.png", "/data/local-files/?d=b/x.png"]
    results = [result for task in tasks for result in task["predictions"][0]["result"]]
    brushes = [result["value"]["rle"] for result in results if result["type"] == "brushlabels"]
    for brush, bitmap in zip(brushes, bitmaps, strict=True):
        assert np.array_equal(rle_pack(brush)[..., 3] > 0, bitmap)
    box = next(result["value"] for result in results if result["type"] == "rectanglelabels")
    corner = (box["x"] * WIDTH / 100, box["y"] * HEIGHT / 100, box["width"] * WIDTH / 100, box["height"] * HEIGHT / 100)
    assert corner == pytest.approx((5, 5, 11, 11))
    labels = ElementTree.parse(tmp_path / "label_studio.xml").getroot().iter("Label")
    assert {label.get("value") for label in labels} == {"both cups", "the fork", HOSTILE}


def test_a_label_studio_task_lists_every_expression_and_opens_the_image_by_its_encoded_path(answers, write, tmp_path):
    answers[:] = [replace(answer, image="./a b/x#1.png") for answer in answers]
    write("label-studio", image_url="http://files/")
    (task,) = json.loads((tmp_path / "label_studio.json").read_text())

    assert task["data"] == {
        "image": "http://files/a%20b/x%231.png",
        "image_path": "./a b/x#1.png",
        "width": WIDTH,
        "height": HEIGHT,
        "expressions": ["both cups", HOSTILE, "the fork"],
        "answers": {"both cups": "2 regions", HOSTILE: "1 region", "the fork": "no target"},
    }
    assert [result["id"] for result in task["predictions"][0]["result"]][:2] == ["box-0", "mask-0"]


def test_label_studio_run_lengths_hold_runs_of_more_than_16_bits():
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    bitmap = np.zeros((400, 300), dtype=bool)
    bitmap[350:, 17:] = True

    decoded = brush.decode_rle(brush_run_lengths(encode_mask(bitmap))).reshape(400, 300, 4)

    assert np.array_equal(decoded[..., 3] > 0, bitmap)


def test_label_studio_accepts_the_predictions(write, tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    write("label-studio")

    labelling = interface.LabelInterface((tmp_path / "label_studio.xml").read_text(encoding="utf-8"))
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert all(labelling.validate_prediction(task["predictions"][0]) for task in tasks)


def test_labelme_shapes_hold_box_and_mask(write, bitmaps, tmp_path):
    write("labelme")
    document = json.loads((tmp_path / "x.json").read_text())

    assert (document["imagePath"], document["imageHeight"], document["imageWidth"]) == ("a/x.png", HEIGHT, WIDTH)
    box, mask = document["shapes"][:2]
    assert (box["shape_type"], box["points"]) == ("rectangle", [[5, 5], [16, 16]])
    png = cv2.imdecode(np.frombuffer(base64.b64decode(mask["mask"]), np.uint8), cv2.IMREAD_UNCHANGED)
    (left, top), (right, bottom) = mask["points"]
    whole = np.zeros((HEIGHT, WIDTH), dtype=bool)
    whole[top : bottom + 1, left : right + 1] = png > 0
    assert np.array_equal(whole, bitmaps[0])


def test_labelme_reads_its_files(write, tmp_path):
    label_file = pytest.importorskip("labelme._label_file", reason="labelme is not installed")
    write("labelme")

    for name in ("x.json", "x-2.json"):
        for shape in json.loads((tmp_path / name).read_text())["shapes"]:
            label_file._load_shape_json_obj(shape)


def test_cvat_masks_fill_their_extent_row_by_row(write, bitmaps, tmp_path):
    write("cvat")
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()

    assert [image.get("name") for image in root.iter("image")] == ["a/x.png", "b/x.png"]
    for element, bitmap in zip(root.iter("mask"), bitmaps, strict=True):
        runs = [int(run) for run in element.get("rle").split(",")]
        left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
        pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        assert np.array_equal(pixels, bitmap[top : top + height, left : left + width])
        assert pixels.sum() == bitmap.sum()
    assert next(root.iter("box")).get("xbr") == "16.00"


def test_datumaro_reads_the_cvat_file(write, bitmaps, tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    write("cvat")
    folder = tmp_path / "cvat"
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "images" / name / "x.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (tmp_path / "annotations.xml").rename(folder / "default.xml")

    items = datumaro.Dataset.import_from(str(folder), "cvat")
    masks = [one.image for item in items for one in item.annotations if one.type == datumaro.AnnotationType.mask]
    assert all(np.array_equal(mask, bitmap) for mask, bitmap in zip(masks, bitmaps, strict=True))


def test_fiftyone_detections_hold_the_mask_within_the_box(write, bitmaps, tmp_path):
    write("fiftyone")
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]

    detections = [detection for sample in samples for detection in sample["predictions"]["detections"]]
    for detection, bitmap in zip(detections, bitmaps, strict=True):
        x, y, width, height = detection["bounding_box"]
        box = (x * WIDTH, y * HEIGHT, (x + width) * WIDTH, (y + height) * HEIGHT)
        left, top, right, bottom = box_pixels(box, HEIGHT, WIDTH)
        packed = zlib.decompress(base64.b64decode(detection["mask"]["$binary"]["base64"]))
        assert np.array_equal(np.load(io.BytesIO(packed)), bitmap[top:bottom, left:right])
    assert samples[0]["expressions_without_target"] == ["the fork"]


def test_fiftyone_reads_its_detections(write, bitmaps, tmp_path):
    labels = pytest.importorskip("fiftyone.core.labels", reason="fiftyone is not installed")
    write("fiftyone")

    for sample in json.loads((tmp_path / "samples.json").read_text())["samples"]:
        for record in sample["predictions"]["detections"]:
            assert labels.Detection.from_dict(record).mask.dtype == bool


def test_a_csv_row_per_target_runs_no_formula(write, answers, tmp_path):
    answers[1] = replace(answers[1], expression="=1+1")
    write("csv")
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(newline="", encoding="utf-8")))

    assert [row["id"] for row in rows] == ["1", "1", "2", "3"]
    assert rows[0]["x2"] == "16.00" and rows[0]["mask_area"] == str(int(disc(10, 10, 5).sum()))
    assert rows[2]["expression"] == "'=1+1"
    assert rows[3]["no_target"] == "True" and rows[3]["score"] == ""


@pytest.mark.parametrize(
    ("name", "source", "file"), [("refcli-data", "jsonl", "data.jsonl"), ("odvg", "odvg", "odvg.jsonl")]
)
def test_pseudo_labels_are_read_as_training_data(name, source, file, write, bitmaps, tmp_path):
    write(name)
    source = lookup(SOURCES, source, what="source")
    files = {"train": tmp_path / file}

    records = list(source.read(files, source.settings(), dataset="pseudo", problems=Problems()))

    found = {expression.text: len(record.regions) for record in records for expression in record.expressions}
    assert found == {"both cups": 2, HOSTILE: 1} | ({"the fork": 0} if name == "refcli-data" else {})


@pytest.mark.parametrize("name", WRITERS)
def test_an_answer_that_does_not_fit_its_image_is_listed_and_spoils_no_file(name, answers, write):
    fits = answers[0]
    nan = replace(fits.targets[0], box_xyxy=(float("nan"), 0.0, 1.0, 1.0))
    inverted = replace(fits.targets[0], box_xyxy=(5.0, 0.0, 1.0, 1.0))
    other_mask = replace(fits.targets[0], mask=encode_mask(np.ones((2, 2), dtype=bool)))
    answers += [
        replace(fits, id="no image", image=""),
        replace(fits, id="another size", width=WIDTH + 1, targets=()),
        replace(fits, id="nan", targets=(nan,)),
        replace(fits, id="inverted", targets=(inverted,)),
        replace(fits, id="mask", targets=(other_mask,)),
    ]
    written = write(name)

    assert written.failed == ["4", "no image", "another size", "nan", "inverted", "mask"]
    assert (written.num_answers, written.num_targets) == (3, 3)


def test_answers_without_a_sufficient_score_are_counted(write):
    assert write("coco", min_score=0.8).num_low_scores == 1


def test_a_label_file_has_a_name_that_every_file_system_takes(answers, write, tmp_path):
    answers[:] = [
        replace(answers[0], id=str(number), image=image)
        for number, image in enumerate(("a/\0.png", "b/..", "image.png"))
    ]
    write("yolo")

    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["image-2.txt", "image-3.txt", "image.txt"]


def test_a_yolo_box_beyond_the_image_is_cut_at_its_edge(answers, write, tmp_path):
    beyond = Target((-10.0, 10.0, 30.0, 50.0), 0.9)
    answers[:] = [replace(answers[0], targets=(beyond,))]
    write("yolo")

    numbers = np.array((tmp_path / "labels" / "x.txt").read_text().split()[1:], float)
    np.testing.assert_allclose(numbers, [15 / WIDTH, 25 / HEIGHT, 30 / WIDTH, 30 / HEIGHT], atol=1e-6)


def test_answers_kept_on_disk_are_read_back_by_image(answers, monkeypatch):
    monkeypatch.setattr(written, "MOST_BYTES_IN_MEMORY", 1)

    images = written.by_image(iter(answers))

    for _ in range(2):
        assert [image.answers for image in images] == [[answers[0], *answers[2:]], [answers[1]]]
    assert [(image.image, image.width, image.height) for image in images] == [
        ("a/x.png", WIDTH, HEIGHT), ("b/x.png", WIDTH, HEIGHT),
    ]  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_fails_on_a_name_that_is_not_unicode(name, answers, write):
    answers[:] = [replace(answers[0], image="a\udcff.png", expression="the \ud800 cup")]

    assert write(name).num_targets == 2


@pytest.mark.parametrize(("name", "file"), [("label-studio", "label_studio.xml"), ("cvat", "annotations.xml")])
def test_characters_that_xml_cannot_hold_become_spaces(name, file, answers, write, tmp_path):
    answers[:] = [replace(answers[0], expression="the\x01 cup\x1b[31m")]
    write(name)

    values = {value for element in ElementTree.parse(tmp_path / file).iter() for value in element.attrib.values()}
    assert "the  cup [31m" in values
