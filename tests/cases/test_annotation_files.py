"""Annotation files: lost masks, class names as expressions, far edges, and files of other formats."""

import json
import zipfile

import pytest

from refcli.config.load import read_yaml
from refcli.config.presets import data_specs_root
from refcli.data.store.read import Store

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
RUNS = {"size": [80, 100], "counts": [1000, 400, 6600]}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0}
LINE = {"image": "a.jpg", "expression": "the cup", "width": 100, "height": 80}
CATEGORIES = [{"id": 1, "name": "cup"}, {"id": 2, "name": "jug"}]


@pytest.fixture
def prepare(refcli, tmp_path):
    """Prepare one file as the data set m: (exit code, examples, messages)."""

    def call(content, name, *arguments):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        code, _, messages = refcli(
            "prepare-data", "--from", tmp_path / name, "--name", "m", "--out", tmp_path / "store", *arguments
        )
        if not (tmp_path / "store" / "manifest.json").exists():
            return code, [], messages
        split = Store(tmp_path / "store").split("m:val")
        return code, [split[row] for row in range(len(split))], messages

    return call


def lines(*records):
    return "\n".join(json.dumps({**LINE, **record}) for record in records).encode()


@pytest.mark.parametrize(
    ("record", "num_masks"),
    [
        ({"boxes": [[10, 10, 30, 30]], "segmentation": SQUARE}, 1),
        ({"boxes": [[10, 10, 30, 30]], "segmentation": [SQUARE]}, 1),
        ({"boxes": [[10, 10, 30, 30]], "segmentation": SQUARE * 3}, 1),
        ({"boxes": [[10, 10, 30, 30]], "segmentation": SQUARE[0]}, 1),
        ({"boxes": [[10, 10, 30, 30]], "segmentation": RUNS}, 1),
        ({"boxes": [[10, 10, 30, 30]] * 2, "segmentation": SQUARE * 2}, 2),
        ({"boxes": [[10, 10, 30, 30]] * 2, "segmentation": [SQUARE, None]}, 1),
        ({"boxes_xywh": [[10, 10, 20, 20]], "segmentation": SQUARE}, 1),
        ({"box": [10, 10, 30, 30], "segmentation": SQUARE[0]}, 1),
        ({"segmentation": SQUARE[0]}, 1),
    ],
)
def test_polygons_beside_boxes_are_read_in_every_usual_form(prepare, record, num_masks):
    code, (example,), messages = prepare(lines(record), "val.jsonl")
    assert code == 0, messages
    assert sum(region.mask is not None for region in example.regions) == num_masks


@pytest.mark.parametrize(("segmentation", "held"), [(RUNS, "one mask for all"), (SQUARE[0], "one polygon")])
def test_one_mask_of_several_boxes_is_reported_as_such(prepare, segmentation, held):
    content = lines({"box": [1, 2, 3, 4]}, {"boxes": [[10, 10, 30, 30]] * 2, "segmentation": segmentation})
    code, examples, messages = prepare(content, "val.jsonl")
    assert (code, len(examples)) == (0, 1)
    assert f"there are 2 boxes but {held}" in messages


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": -1, "height": -1}, {"width": None}])
def test_an_unknown_size_may_be_written_in_any_usual_way(prepare, size):
    code, (example,), messages = prepare(lines({"box": [10, 10, 30, 30], **size}), "val.jsonl")
    assert (code, example.width, example.height) == (0, 0, 0), messages


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (["a"], "not a list of numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "not a list of numbers"),
        (5, "neither polygons nor run lengths"),
        ({"size": [80, 100]}, "counts are null"),
        ({"size": 80, "counts": []}, "size is not height and width"),
        ({"size": [80, 100], "counts": "é"}, "damaged"),
        ({"size": [10, 10], "counts": [100]}, "the size (10, 10)"),
        ([[1, 1, 2, 2]], None),
    ],
)
def test_masks_that_are_lost_are_named_in_plain_words_with_exit_code_3(prepare, segmentation, reason):
    code, examples, messages = prepare(lines({"box": [10, 10, 30, 30], "segmentation": segmentation}), "val.jsonl")
    assert (code, len(examples)) == (3, 1)
    assert "1 masks cannot be read" in messages
    assert reason is None or reason in messages
    assert "object" not in messages
    assert "'int'" not in messages


def test_masks_in_images_of_unknown_size_are_lost(prepare):
    record = {"box": [10, 10, 30, 30], "segmentation": SQUARE, "width": None, "height": None}
    code, (example,), messages = prepare(lines(record), "val.jsonl")
    assert (code, example.regions[0].mask) == (3, None)
    assert "--images" in messages
    assert prepare(lines(record), "val.jsonl")[0] == 3


def test_a_few_lost_masks_and_records_left_out_are_listed_with_exit_code_0(prepare):
    good = {"box": [10, 10, 30, 30], "segmentation": SQUARE}
    code, examples, messages = prepare(
        lines(good, good, {**good, "segmentation": 5}, {"box": [5, 5, 5, 5]}), "val.jsonl"
    )
    assert (code, len(examples)) == (0, 3)
    assert "unreadable mask: 1" in messages


def test_the_json_report_counts_the_lost_masks(refcli, tmp_path):
    (tmp_path / "val.jsonl").write_bytes(lines({"box": [10, 10, 30, 30], "segmentation": 5}))
    arguments = ("--from", tmp_path / "val.jsonl", "--name", "m", "--out", tmp_path / "store", "--json")
    code, out, _ = refcli("prepare-data", *arguments)
    assert code == 3
    assert json.loads(out)["datasets"][0]["lost_masks"] == {"val": 1}


def test_plain_coco_is_refused_with_the_option_to_use_and_read_with_it(prepare):
    boxes = [
        BOX,
        {**BOX, "id": 2, "bbox": [50, 10, 20, 20]},
        {**BOX, "id": 3, "category_id": 2, "segmentation": SQUARE},
    ]
    content = {"images": [IMAGE], "annotations": boxes, "categories": CATEGORIES}
    code, _, messages = prepare(content, "val.json")
    assert code == 5
    assert "--expressions category" in messages
    code, examples, messages = prepare(content, "val.json", "--expressions", "category")
    assert code == 0, messages
    assert [(one.expression, one.kind, len(one.regions)) for one in examples] == [
        ("cup", "category", 2),
        ("jug", "category", 1),
    ]
    assert len({one.id for one in examples}) == len(examples)


@pytest.mark.parametrize("odd", [{"id": None}, {"bbox": []}, {"bbox": "x"}, {"rotation": 5, "category_id": {}}])
def test_an_odd_row_does_not_hide_the_option_that_plain_coco_needs(prepare, odd):
    content = {"images": [IMAGE], "annotations": [BOX, {**BOX, "id": 2, **odd}], "categories": CATEGORIES}
    code, _, messages = prepare(content, "val.json")
    assert code == 5
    assert "--expressions category" in messages
    content["images"].append({**IMAGE, "id": 2})
    content["annotations"].append({**BOX, "id": 3, "image_id": 2})
    code, examples, messages = prepare(content, "val.json", "--expressions", "category")
    assert code == 0, messages
    assert [one.id for one in examples] == ["m/2/1"]


def test_a_class_with_an_unreadable_object_is_left_out(prepare):
    boxes = [BOX, {**BOX, "id": 2, "ignore": 1}, {**BOX, "id": 3, "category_id": 2}, {**BOX, "id": 4, "category_id": 9}]
    content = {"images": [IMAGE], "annotations": boxes, "categories": CATEGORIES}
    code, examples, messages = prepare(content, "val.json", "--expressions", "category")
    assert (code, [one.expression for one in examples]) == (0, ["jug"])
    assert "target of broken row: 1" in messages
    assert "annotation without category: 1" in messages


def test_labels_of_lines_are_class_names_too(prepare):
    instances = [{"bbox": [1, 2, 30, 40], "label": 1, "category": "cup"}, {"bbox": [50, 2, 60, 40], "category": "cup"}]
    line = {"filename": "a.jpg", "height": 80, "width": 100, "detection": {"instances": instances}}
    code, _, messages = prepare(json.dumps(line).encode(), "val.jsonl")
    assert code == 5
    assert "--expressions category" in messages
    code, (example,), _ = prepare(json.dumps(line).encode(), "val.jsonl", "--expressions", "category")
    assert (code, example.expression, len(example.regions)) == (0, "cup", 2)


def test_class_names_are_refused_where_there_are_none(prepare, refcli, tmp_path):
    assert prepare(lines({"box": [1, 2, 3, 4]}), "val.jsonl", "--expressions", "category")[0] == 2
    assert prepare(lines({"box": [1, 2, 3, 4]}), "val.jsonl", "--expressions", "templates")[0] == 2
    content = {"images": [IMAGE], "annotations": [{**BOX, "category_id": 9}], "categories": []}
    code, _, messages = prepare(content, "val.json", "--expressions", "category")
    assert code == 5
    assert "categor" in messages


@pytest.mark.parametrize(("settings", "box"), [((), (10, 20, 60, 80)), (("inclusive_boxes=false",), (10, 20, 59, 79))])
def test_the_far_edges_of_flickr30k_are_moved_out_unless_the_setting_keeps_them(refcli, tmp_path, settings, box):
    raw = tmp_path / "raw"
    for folder in ("Sentences", "Annotations"):
        (raw / folder).mkdir(parents=True)
    (raw / "Sentences" / "11.txt").write_text("[/EN#1/people Two men] wait .\n")
    edges = "<xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>80</ymax>"
    size = "<size><width>100</width><height>80</height></size>"
    xml = f"<annotation>{size}<object><name>1</name><bndbox>{edges}</bndbox></object></annotation>"
    (raw / "Annotations" / "11.xml").write_text(xml)
    for split, images in (("train", ""), ("val", ""), ("test", "11\n")):
        (raw / f"{split}.txt").write_text(images)
    arguments = [argument for one in settings for argument in ("--set", one)]
    code, _, messages = refcli("prepare-data", "flickr30k", "--raw", raw, "--out", tmp_path / "store", *arguments)
    assert code == 0, messages
    assert Store(tmp_path / "store").split("flickr30k:test")[0].regions[0].box_xyxy == box


def test_the_commands_of_presets_on_referit_and_flickr30k_name_the_setting_of_the_paper():
    presets = sorted((data_specs_root() / "presets").rglob("*.yaml"))
    concerned = 0
    for path in presets:
        text = path.read_text()
        for dataset in ("referit", "flickr30k"):
            if f"prepare-data {dataset} " in text:
                concerned += 1
                command = next(line for line in text.splitlines() if f"prepare-data {dataset} " in line)
                assert "--set inclusive_boxes=false" in command, path.name
        assert read_yaml(path)
        assert "referit mixup" not in text
    assert concerned == 13


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"image": "a.jpg"}'.encode("utf-16"), "UTF-16"),
        ('{"image": "a.jpg"}'.encode("utf-16-be"), "UTF-16"),
        ('{"image": "a.jpg"}'.encode("utf-32"), "UTF-32"),
        (b"[\n " + lines({"box": [1, 2, 3, 4]}) + b"\n]", "one JSON list"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"PAR1....", "a Parquet file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"", "empty"),
    ],
)
def test_a_foreign_file_is_identified_by_its_first_bytes(prepare, content, reason):
    code, _, messages = prepare(content, "val.json")
    assert code == 2
    assert reason in messages


def test_a_zip_with_the_suffix_of_json_is_identified(prepare, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("annotations.json", "{}")
    code, _, messages = prepare((tmp_path / "x.zip").read_bytes(), "annotations.json")
    assert code == 2
    assert "a zip archive under the name annotations.json" in messages


@pytest.mark.parametrize(
    ("content", "reason", "may_be_truncated"),
    [
        (json.dumps({"images": [IMAGE], "annotations": [BOX]}).encode()[:-30], "ends in the middle", True),
        (b'{"images": [1,], "annotations": []}', "line 1, column", False),
        (json.dumps({"images": [], "annotations": []}).encode("utf-16"), "UTF-16", False),
        (b'{"images": [], "annotations": [], "caf\xe9": 1}', "0xE9", False),
    ],
)
def test_the_hint_of_a_broken_document_does_not_guess(prepare, content, reason, may_be_truncated):
    code, _, messages = prepare(content, "val.json", "--format", "coco")
    assert code == 5
    assert reason in messages
    assert ("truncated" in messages) == may_be_truncated


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a Git LFS pointer under the name instances.json",
        ),
        (json.dumps({"images": [], "annotations": []}).encode("utf-16"), "UTF-16"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_a_foreign_file_beside_the_main_one_is_named_too(prepare, tmp_path, content, reason):
    (tmp_path / "instances.json").write_bytes(content)
    refs = [{"ref_id": 1, "ann_id": 7, "image_id": 1, "split": "val", "sentences": [{"sent": "cup", "raw": "Cup"}]}]
    code, _, messages = prepare(refs, "refs(unc).json")
    assert code == 5
    assert reason in messages
    assert prepare(content, "val.jsonl", "--format", "jsonl")[0] == 5
